"""A model of your own: tell tokcomp where its tower, projector and language model are, once, and every strategy runs on it.

python examples/adapter.py
"""

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel

import tokcomp
from tokcomp.models.adapter import Adapter, Modality, register_adapter
from tokcomp.models.causal import decoder_of
from tokcomp.models.llava import clip_tower

IMAGE = 199


class MyModel(nn.Module):
    """A CLIP tower, one linear layer, a Llama: not a class of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes = CLIPVisionModel(CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=4,
                                                     num_attention_heads=4, image_size=84, patch_size=14))  # fmt: skip
        self.bridge = nn.Linear(32, 48)
        self.brain = LlamaModel(LlamaConfig(vocab_size=200, hidden_size=48, intermediate_size=96, num_hidden_layers=4,
                                            num_attention_heads=4))  # fmt: skip

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.bridge(self.eyes(pixel_values, output_hidden_states=True).hidden_states[-2][:, 1:])

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
        embeds = self.brain.embed_tokens(input_ids)
        if pixel_values is not None:
            embeds = embeds.masked_scatter((input_ids == IMAGE)[..., None], self.encode(pixel_values))
        return self.brain(inputs_embeds=embeds).last_hidden_state


@register_adapter("MyModel")
def my_adapter(model: MyModel) -> Adapter:
    return Adapter(
        family="mine",
        model=model,
        decoder=decoder_of(model.brain),
        tower=clip_tower(model.eyes, model.bridge, feature_layer=-2),
        multimodal=model,
        modalities=(Modality("image", IMAGE, "encode"),),
        embed=model.brain.embed_tokens,
    )


torch.manual_seed(0)
model = MyModel().eval()
ids = torch.tensor([[5, 6, *[IMAGE] * 36, 7, 8, 9]])
with tokcomp.Pipeline("tome", {"name": "fastv", "keep_ratio": 0.5}, "h2o").attach(model) as trace, torch.no_grad():
    model(input_ids=ids, pixel_values=torch.randn(1, 3, 84, 84))
print(trace.last.summary())
