"""Small models of several kinds with random weights, some of which transformers itself writes."""

import dataclasses
import json
from pathlib import Path

from isogloss_server.models import parity
from safetensors.numpy import load_file, save_file

from tests.support import shapes
from tests.support.shapes import SMALL

SHARED = {"vocab_size": SMALL.vocabulary, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 1}
SHARED |= {"hidden_size": SMALL.hidden, "intermediate_size": SMALL.intermediate}


def bert(folder: Path) -> Path:
    return shapes.write(folder, SMALL)


def roberta_with_dense(folder: Path) -> Path:
    return shapes.write(folder, dataclasses.replace(SMALL, model_type="xlm-roberta", pooling="cls", dense=32))


def distilbert_of_unit_length(folder: Path) -> Path:
    return shapes.write(folder, dataclasses.replace(SMALL, model_type="distilbert", normalize=True))


def mpnet(folder: Path) -> Path:
    from transformers import MPNetConfig, MPNetModel

    shapes.write(folder, dataclasses.replace(SMALL, normalize=True))
    MPNetModel(MPNetConfig(**SHARED, max_position_embeddings=130, initializer_range=0.2)).save_pretrained(folder)
    return folder


def modernbert(folder: Path) -> Path:
    from transformers import ModernBertConfig, ModernBertModel

    shapes.write(folder, SMALL)
    special = {"bos_token_id": 0, "cls_token_id": 0, "eos_token_id": 2, "sep_token_id": 2}
    config = ModernBertConfig(**SHARED, **special, max_position_embeddings=128, local_attention=16)
    ModernBertModel(config).save_pretrained(folder)
    return folder


def qwen_by_its_last_token(folder: Path) -> Path:
    """Reads pairs of bytes, ends each text with a token to be pooled, and pads on the left, as such folders do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import Qwen2Config, Qwen2Model

    shapes.write(folder, SMALL)
    Qwen2Model(Qwen2Config(**SHARED, num_key_value_heads=2, max_position_embeddings=256)).save_pretrained(folder)
    pooling = {"embedding_dimension": SMALL.hidden, "pooling_mode": "lasttoken"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    end = "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=[end], initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(parity.sentences(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "padding_side": "left", "pad_token": end, "eos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").unlink()
    return folder


def change(file: Path, **facts: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


def drop(folder: Path, prefix: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
