"""One image, one question: any supported model, two lines more than without tokcomp.

python examples/single_image.py                                  # the model that ships with tokcomp
python examples/single_image.py llava-hf/llava-1.5-7b-hf photo.jpg "What is this?"
"""

import sys

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import tokcomp
from tokcomp.embedded import WEIGHTS

path, picture, question = sys.argv[1:] or (str(WEIGHTS), "docs/images/scene.png", "describe all the digits")

model = AutoModelForImageTextToText.from_pretrained(path, dtype="auto", use_safetensors=True).float().eval()
processor = AutoProcessor.from_pretrained(path)
chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
text = processor.apply_chat_template(chat, add_generation_prompt=True)
inputs = processor(images=Image.open(picture).convert("RGB"), text=text, return_tensors="pt")

pipeline = tokcomp.Pipeline(vision="tome", prefill={"name": "fastv", "layer": 2, "keep_ratio": 0.5})
with pipeline.attach(model) as trace:
    output = model.generate(**inputs, max_new_tokens=30, do_sample=False)

print(processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])
print(trace.last.summary())
