"""Tokenizer, image processor and chat template of the embedded model."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import LlavaProcessor, PreTrainedTokenizerFast

# The PIL processor is named outright: asking for "CLIPImageProcessor" warns without torchvision.
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tokcomp.embedded import vocabulary as v
from tokcomp.embedded.scenes import IMAGE_SIZE, PATCH_SIZE

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's pixel statistics."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image> {% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build_tokenizer(word_ids: dict[str, int] = v.WORD_IDS) -> PreTrainedTokenizerFast:
    """One token per word, lower-cased; prompts are padded on the left for generation."""
    words = Tokenizer(models.WordLevel(word_ids, unk_token=v.UNKNOWN))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single=f"{v.BOS} $A", pair=f"{v.BOS} $A $B", special_tokens=[(v.BOS, word_ids[v.BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=v.BOS,
        eos_token=v.EOS,
        unk_token=v.UNKNOWN,
        pad_token=v.PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        extra_special_tokens={"image_token": v.IMAGE},
    )


def build_processor(word_ids: dict[str, int] = v.WORD_IDS) -> LlavaProcessor:
    """The complete processor; saved next to the weights, `AutoProcessor` loads it from there."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=list(MEAN),
        image_std=list(STD),
        do_resize=True,
        do_center_crop=True,
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(word_ids),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        image_token=v.IMAGE,
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
