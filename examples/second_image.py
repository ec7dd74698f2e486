"""A new image in a later turn: it is compressed as the first one was, and the first one stays as it is in the cache.

python examples/second_image.py
"""

import torch

import tokcomp
from tokcomp.embedded import load_model, load_processor, prompt, question_set
from tokcomp.runner.arguments import cache_in, cache_name

model, processor = load_model(), load_processor()
items = question_set(2)
conversation, cache = None, {}

with tokcomp.Pipeline(vision="tome", prefill="fastv").attach(model) as trace:
    for number, item in enumerate(items):
        inputs = processor(images=item.image, text=prompt(item.question), return_tensors="pt")
        # The whole conversation, the pixels of this turn's own image, and the cache of the turns before.
        ids = inputs["input_ids"] if conversation is None else torch.cat([conversation, inputs["input_ids"]], dim=1)
        out = model.generate(
            input_ids=ids,
            pixel_values=inputs["pixel_values"],
            max_new_tokens=8,
            do_sample=False,
            return_dict_in_generate=True,
            **cache,
        )
        # The argument is called cache from transformers 5.24 on, past_key_values before.
        conversation, cache = out.sequences, {cache_name(model): cache_in(out)}
        answer = processor.decode(conversation[0, ids.shape[1] :], skip_special_tokens=True).strip()
        record = trace.last
        print(f"turn {number}: {item.question} {answer}")
        print(
            f"  {record.image_tokens[0]} image tokens, {record.after_vision[0]} after the vision stage, "
            f"{record.vision_tokens[-1][0]} in the last layer, whose cache holds {record.cache_lengths[-1][0]} "
            f"of {conversation.shape[1]} tokens"
        )
