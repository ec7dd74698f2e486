"""A second question about the same image: the first turn's cache goes on, and the image in it stays compressed.

python examples/two_turns.py
"""

import torch

import tokcomp
from tokcomp.embedded import load_model, load_processor, prompt, question_set
from tokcomp.runner.arguments import cache_in, cache_name

model, processor = load_model(), load_processor()
item = question_set(1)[0]
inputs = processor(images=item.image, text=prompt(item.question), return_tensors="pt")

with tokcomp.Pipeline(vision="tome", prefill="fastv").attach(model) as trace:
    first = model.generate(**inputs, max_new_tokens=20, do_sample=False, return_dict_in_generate=True)
    cache = cache_in(first)
    entries = trace.last.cache_lengths[-1]
    question = processor.tokenizer("how many digits are there ?", return_tensors="pt")["input_ids"]
    conversation = torch.cat([first.sequences, question], dim=1)
    # The argument is called cache from transformers 5.24 on, past_key_values before.
    second = model.generate(input_ids=conversation, max_new_tokens=5, do_sample=False, **{cache_name(model): cache})

print("answer:", processor.decode(first.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
print("second answer:", processor.decode(second[0, conversation.shape[1] :], skip_special_tokens=True).strip())
print(
    f"the last layer's cache: {entries} entries, then {trace.last.cache_lengths[-1]}, of {conversation.shape[1]} tokens"
)
