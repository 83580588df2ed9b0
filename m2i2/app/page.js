// Of the page's parts: `element`, `trigger`, `upload` come from Gradio's HTML component, which runs a part's function.
const most = (bytes) => `${Math.round(bytes / 1e6)} MB`;

function chooses(element, trigger) {
  element.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-index]");
    if (button) trigger("select", { index: Number(button.dataset.index) });
  });
}

function uploads(element, trigger, upload) {
  const status = (text) => {
    const line = document.querySelector("#hint p");
    if (line) line.textContent = text;
  };
  let busy = false;
  async function take(list) {
    const files = [...list];
    if (!files.length || busy) return;
    busy = true;
    const input = element.querySelector("input");
    const done = [], problems = [];
    for (const [number, file] of files.slice(0, Number(input.dataset.images)).entries()) {
      status(`Uploading ${number + 1} of ${files.length} ...`);
      if (file.size > Number(input.dataset.bytes)) {
        problems.push(`${file.name} is too large: ${most(file.size)}, at most ${most(input.dataset.bytes)}.`);
        continue;
      }
      try {
        done.push((await upload(file)).path);
      } catch (error) {
        problems.push(`${file.name} was not uploaded. ${String((error && error.message) || error).slice(0, 300)}`);
      }
    }
    input.value = "";
    busy = false;
    trigger("upload", { files: done, problems });
  }
  element.addEventListener("change", (event) => take(event.target.files));
  const over = (on) => document.body.classList.toggle("over", on);
  document.addEventListener("dragover", (event) => { event.preventDefault(); over(true); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(false); });
  document.addEventListener("drop", (event) => { event.preventDefault(); over(false); take(event.dataTransfer.files); });
}

function arrows() {
  const buttons = { ArrowLeft: "#previous", ArrowRight: "#next" };
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select, [contenteditable], pre, [role=region]");
    if (!buttons[event.key] || typing || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    document.querySelector(buttons[event.key])?.click();
  });
}
