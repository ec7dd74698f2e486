"""Fine-tuning with compression on: gradients flow through the tokens that stay.

python examples/fine_tuning.py
"""

import torch

import tokcomp
from tokcomp.embedded import load_model, load_processor, prompt, question_set

STEPS = 6
model, processor = load_model().train(), load_processor()
items = question_set(4)
texts = [f"{prompt(item.question)} {item.answer}" for item in items]
inputs = processor(images=[item.image for item in items], text=texts, padding=True, return_tensors="pt")
asked = processor(images=[item.image for item in items], text=[prompt(item.question) for item in items],
                  padding=True, return_tensors="pt")  # fmt: skip
labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
for row, length in enumerate(asked["attention_mask"].sum(dim=1)):  # the answer is what is learned
    start = int((inputs["attention_mask"][row] == 0).sum()) if inputs["attention_mask"][row, 0] == 0 else 0
    labels[row, start : start + int(length)] = -100

optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
with tokcomp.Pipeline(vision={"name": "fastervlm", "keep_ratio": 0.25}).attach(model) as trace:
    for step in range(STEPS):
        loss = model(**inputs, labels=labels, use_cache=False).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        print(
            f"step {step}: loss {loss.item():.4f}, {trace.last.after_vision[0]} of {trace.last.image_tokens[0]} tokens"
        )
