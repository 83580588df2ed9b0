"""The models under Hugging Face's conventions: ``from_pretrained``, ``save_pretrained``, ``push_to_hub``, Auto classes, a pipeline.

Importing this module tells transformers of our models. Nothing of it needs ``trust_remote_code``.
"""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForVisualQuestionAnswering, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from m2i2.hub.configuration import M2I2Config
from m2i2.hub.modeling import M2I2ForPretraining, M2I2ForVisualQuestionAnswering
from m2i2.hub.pipeline import TASK, VisualQuestionAnsweringPipeline
from m2i2.hub.processing import M2I2Processor

AutoConfig.register(M2I2Config.model_type, M2I2Config)
AutoProcessor.register(M2I2Config, M2I2Processor)
AutoModelForPreTraining.register(M2I2Config, M2I2ForPretraining)
AutoModelForVisualQuestionAnswering.register(M2I2Config, M2I2ForVisualQuestionAnswering)
# several classes of one configuration: transformers takes the one that config.json names under architectures
AutoModel.register(M2I2Config, (M2I2ForVisualQuestionAnswering, M2I2ForPretraining))
PIPELINE_REGISTRY.register_pipeline(TASK, VisualQuestionAnsweringPipeline, AutoModelForVisualQuestionAnswering)

__all__ = ["M2I2Config", "M2I2ForPretraining", "M2I2ForVisualQuestionAnswering", "M2I2Processor", "VisualQuestionAnsweringPipeline"]
