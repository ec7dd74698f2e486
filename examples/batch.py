"""A batch of prompts of different lengths: every sample gets what it would get alone.

python examples/batch.py
"""

import tokcomp
from tokcomp.embedded import load_model, load_processor, prompt, question_set

model, processor = load_model(), load_processor()
items = question_set(4)
inputs = processor(images=[item.image for item in items], text=[prompt(item.question) for item in items],
                   padding=True, padding_side="left", return_tensors="pt")  # fmt: skip

with tokcomp.Pipeline.from_preset("mustdrop").attach(model) as trace:
    output = model.generate(**inputs, max_new_tokens=20, do_sample=False)

answers = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
for number, (item, answer) in enumerate(zip(items, answers, strict=True)):
    tokens = f"{trace.last.image_tokens[number]} -> {trace.last.vision_tokens[-1][number]} tokens"
    print(f"{item.question}  {answer.strip()}  ({tokens})")
