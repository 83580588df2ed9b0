"""Images: decoding within bounds, DICOM, augmentation."""
