"""A video: its frames are compressed like images, each with its own budget.

The model here is LLaVA-NeXT-Video's class with random weights, tiny, so that the script runs anywhere: it shows the calls. With
a checkpoint, build the inputs with its processor: processor(text=..., videos=..., return_tensors="pt").

python examples/video.py
"""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

import tokcomp

VIDEO, FRAMES, SIDE = 198, 4, 84
tower = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, image_size=SIDE,
                         patch_size=14, projection_dim=32)  # fmt: skip
text = LlamaConfig(vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
                   bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
config = LlavaNextVideoConfig(vision_config=tower, text_config=text, image_token_index=199, video_token_index=VIDEO,
                              image_grid_pinpoints=[[SIDE, 2 * SIDE]])  # fmt: skip
torch.manual_seed(0)
model = LlavaNextVideoForConditionalGeneration(config).eval()

tokens = FRAMES * (SIDE // 14 // 2) ** 2  # the model pools 2 x 2 patches of a frame
ids = torch.tensor([[5, 6, *[VIDEO] * tokens, 7, 8, 9]])
frames = torch.randn(1, FRAMES, 3, SIDE, SIDE)

with tokcomp.Pipeline(vision={"name": "uniform", "keep_ratio": 0.5}, prefill="fastv").attach(model) as trace:
    model.generate(input_ids=ids, pixel_values_videos=frames, max_new_tokens=5, do_sample=False)

print(f"{trace.last.image_tokens} tokens of {FRAMES} frames, {trace.last.after_vision} after the vision stage, "
      f"{trace.last.vision_tokens[-1]} in the last layer")  # fmt: skip
