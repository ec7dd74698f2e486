"""Several images in one prompt: which of their tokens stayed, image by image.

python examples/several_images.py
"""

import tokcomp
from tokcomp.embedded import load_model, load_processor, question_set

model, processor = load_model(), load_processor()
images = [item.image for item in question_set(3)]
text = "<image> <image> <image> what digit is red ?"
inputs = processor(images=images, text=text, return_tensors="pt")

# Every image has its own budget; the filter chooses among the tokens of all images.
pipeline = tokcomp.Pipeline(
    vision={"name": "fastervlm", "keep_ratio": 0.5}, prefill={"name": "fastv", "keep_ratio": 0.5}
)
with pipeline.attach(model) as trace:
    model.generate(**inputs, max_new_tokens=5, do_sample=False)

record = trace.last
per_image = int(record.image_tokens) // len(images)
for layer in (0, len(record.kept) - 1):
    owners = record.kept[layer][0] // per_image
    print(f"entering layer {layer}:", ", ".join(f"image {i}: {int((owners == i).sum())}" for i in range(len(images))))
