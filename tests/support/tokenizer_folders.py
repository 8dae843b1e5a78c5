"""Small models whose tokenizer files agree, differ, or ask for a tokenizer that is not reproduced."""

import base64
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isogloss_server.models import layout, model_folder, parity, tokenizer_files
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from tests.support import shapes
from tests.support.library_folders import change
from tests.support.shapes import SMALL

TEXTS = [
    *parity.sentences(),
    "a text with a trailing newline\n",
    "  two  spaces, a\ttab,\r\nand more \n\n lines  ",
    "ÀÉÎ Straße İstanbul ﬁne ＦＵＬＬ ｗｉｄｔｈ",
    "<s> a </s><mask>b <pad> <unk>",
    "[CLS] a [SEP][MASK]b [PAD] [UNK] [unused]",
    "a\u200bb\ufeffc\u00a0d\u3000e",
    "ab" * 60,
]
Change = Callable[[Path], object]


def bert(folder: Path) -> Path:
    """A BERT with word pieces, whose files agree."""
    shapes.write(folder, SMALL)
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        parity.sentences(), trainers.WordPieceTrainer(vocab_size=2000, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    return written(folder, made, "BertTokenizer", names, do_lower_case=True)


def distilbert(folder: Path) -> Path:
    """The same for a DistilBERT, whose class another version of the library saved."""
    bert(folder)
    tokenizer = (folder / "tokenizer.json").read_bytes()
    config = (folder / "tokenizer_config.json").read_text()
    shapes.write(folder, dataclasses.replace(SMALL, model_type="distilbert"))
    (folder / "special_tokens_map.json").unlink()
    (folder / "tokenizer.json").write_bytes(tokenizer)
    (folder / "tokenizer_config.json").write_text(config)
    change(folder / "tokenizer_config.json", tokenizer_class="DistilBertTokenizerFast")
    return folder


def roberta(folder: Path) -> Path:
    """A RoBERTa with pairs of bytes, whose files agree."""
    shapes.write(folder, dataclasses.replace(SMALL, model_type="xlm-roberta"))
    change(folder / "config.json", model_type="roberta")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator(parity.sentences(), trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    return written(folder, made, "RobertaTokenizer", shapes_names(), add_prefix_space=False)


def xlm_roberta(folder: Path, model_type: str = "xlm-roberta", kind: str = "XLMRobertaTokenizer") -> Path:
    """An XLM-RoBERTa with pieces of sentences, whose files agree."""
    shapes.write(folder, dataclasses.replace(SMALL, model_type="xlm-roberta"))
    change(folder / "config.json", model_type=model_type)
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.normalizer = None  # type: ignore[assignment]
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    return written(folder, made, kind, shapes_names())


def camembert(folder: Path) -> Path:
    """The same for a CamemBERT."""
    xlm_roberta(folder, "camembert", "CamembertTokenizer")
    edit(folder, lambda t: t["model"]["vocab"].__setitem__(slice(10, 13), [[x, -50.0] for x in NOT_USED]))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    edit(
        folder,
        lambda t: t["added_tokens"].extend({"id": 10 + n, "content": x, **flags} for n, x in enumerate(NOT_USED)),
    )
    edit(folder, lambda t: t["added_tokens"].sort(key=lambda token: token["id"]))
    edit(folder, lambda t: t["added_tokens"][-1].update(lstrip=True))
    return folder


NOT_USED = ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"]


def shapes_names() -> dict[str, str]:
    return {name.removesuffix("_token"): token for name, token in shapes.SPECIAL_NAMES.items()}


def written(folder: Path, tokenizer: Any, kind: str, names: dict[str, str], **settings: object) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {f"{name}_token": token for name, token in names.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **facts, **settings}))
    (folder / "special_tokens_map.json").unlink()
    return folder


def edit(folder: Path, work: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    work(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))


def file(**parts: object) -> Change:
    """Returns a change of parts of tokenizer.json."""
    return lambda folder: edit(folder, lambda content: content.update(parts))


def model(**parts: object) -> Change:
    """Returns a change of options of the model in tokenizer.json."""
    return lambda folder: edit(folder, lambda content: content["model"].update(parts))


def config(**settings: object) -> Change:
    """Returns a change of tokenizer_config.json."""
    return lambda folder: change(folder / "tokenizer_config.json", **settings)


def without(*names: str) -> Change:
    """Returns a change that removes settings from tokenizer_config.json."""

    def remove(folder: Path) -> None:
        own = folder / "tokenizer_config.json"
        facts = json.loads(own.read_text())
        own.write_text(json.dumps({name: fact for name, fact in facts.items() if name not in names}))

    return remove


def without_settings(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()


def lower_case(folder: Path) -> None:
    change(folder / "sentence_bert_config.json", do_lower_case=True)


def special_tokens_map(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text(json.dumps({"cls_token": "[MASK]", "sep_token": "[UNK]"}))


def added(content: str, **flags: bool) -> Change:
    """Returns a change that declares an added token in tokenizer_config.json alone."""
    token = {"content": content, **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False), **flags}
    return config(added_tokens_decoder={"7": {**token, "special": False}})


def nothing(folder: Path) -> None:
    """Leaves the files as they are."""


# A normalizer of SentencePiece that replaces nothing: the length of its trie, and a trie without a match.
CHARACTERS_MAP = base64.b64encode((1024).to_bytes(4, "little") + bytes(1024) + b"\0").decode()
PRECOMPILED = {"type": "Precompiled", "precompiled_charsmap": CHARACTERS_MAP}
SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
BERT_NORMALIZER = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
BERT_NORMALIZER |= {"lowercase": True}
PADDING = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0}
PADDING |= {"pad_token": "[PAD]"}
TRUNCATION = {"max_length": 100, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
META = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
Case = tuple[Callable[[Path], Path], Change]
AGREE: dict[str, Case] = {
    "bert": (bert, nothing),
    "distilbert": (distilbert, nothing),
    "roberta": (roberta, nothing),
    "xlm-roberta": (xlm_roberta, nothing),
    "camembert": (camembert, nothing),
    "bert, no settings": (bert, without_settings),
    "distilbert, no settings": (distilbert, without_settings),
    "roberta, no settings": (roberta, without_settings),
    "xlm-roberta, no settings": (xlm_roberta, without_settings),
    "camembert, no settings": (camembert, without_settings),
    "bert, strip_accents spelled out": (bert, file(normalizer=BERT_NORMALIZER | {"strip_accents": True})),
    "bert, fast class": (bert, config(tokenizer_class="BertTokenizerFast")),
    "bert, generic class": (bert, config(tokenizer_class="PreTrainedTokenizerFast")),
    "bert, lower case": (bert, lower_case),
    "bert, padding and truncation": (bert, file(padding=PADDING, truncation=TRUNCATION)),
    "xlm-roberta, padding and truncation": (xlm_roberta, file(padding=PADDING, truncation=TRUNCATION)),
    "xlm-roberta, a map of characters": (xlm_roberta, file(normalizer=PRECOMPILED)),
    "xlm-roberta, generic class, any pre-tokenizer": (
        lambda folder: xlm_roberta(folder, kind="PreTrainedTokenizerFast"),
        file(pre_tokenizer=META),
    ),
}
DIFFER: dict[str, Case] = {
    "bert, normalizer NFC": (bert, file(normalizer={"type": "NFC"})),
    "bert, no normalizer": (bert, file(normalizer=None)),
    "bert, cased in tokenizer.json alone": (bert, file(normalizer=BERT_NORMALIZER | {"lowercase": False})),
    "bert, cased in the settings alone": (bert, config(do_lower_case=False)),
    "bert, settings without case": (
        bert,
        lambda folder: (
            file(normalizer=BERT_NORMALIZER | {"lowercase": False})(folder),
            without("do_lower_case")(folder),
        ),
    ),
    "bert, accents kept in the settings": (bert, config(strip_accents=False)),
    "bert, Chinese characters": (bert, config(tokenize_chinese_chars=False)),
    "bert, text not cleaned": (bert, file(normalizer=BERT_NORMALIZER | {"clean_text": False})),
    "bert, no post-processor": (bert, file(post_processor=None)),
    "bert, other special tokens": (bert, config(cls_token="[MASK]", sep_token="[UNK]")),
    "bert, other special tokens in the old file": (bert, special_tokens_map),
    "bert, extra special tokens in the old file": (
        bert,
        lambda folder: (folder / "special_tokens_map.json").write_text('{"additional_special_tokens": ["the", "of"]}'),
    ),
    "bert, tokens in the file of added tokens": (
        bert,
        lambda folder: (folder / "added_tokens.json").write_text('{"the": 60, "of": 61}'),
    ),
    "bert, extra special tokens with names": (bert, config(extra_special_tokens={"image_token": "the"})),
    "bert, a special token with flags": (
        bert,
        config(mask_token={"__type": "AddedToken", "content": "the", "lstrip": True, "normalized": False}),
    ),
    "bert, a special token with a name of its own": (bert, config(image_token="the")),
    "bert, other pre-tokenizer": (bert, file(pre_tokenizer={"type": "WhitespaceSplit"})),
    "bert, other prefix": (bert, model(continuing_subword_prefix="@@")),
    "bert, short words": (bert, model(max_input_chars_per_word=10)),
    "bert, other unknown token": (bert, config(unk_token="[MASK]")),
    "bert, an added token": (bert, added("the")),
    "bert, extra special tokens": (bert, config(additional_special_tokens=["the", "of"])),
    "bert, lower case of a cased model": (
        bert,
        lambda folder: (config(do_lower_case=False)(folder), lower_case(folder)),
    ),
    "bert, class in config.json": (
        bert,
        lambda folder: (
            without("tokenizer_class")(folder),
            change(folder / "config.json", tokenizer_class="BertTokenizer"),
            file(normalizer=None)(folder),
        ),
    ),
    "bert, no settings, no post-processor": (
        bert,
        lambda folder: (without_settings(folder), file(post_processor=None)(folder)),
    ),
    "distilbert, no normalizer": (distilbert, file(normalizer=None)),
    "generic class, an added token": (
        bert,
        lambda folder: (config(tokenizer_class="PreTrainedTokenizerFast")(folder), added("the", lstrip=True)(folder)),
    ),
    "roberta, a space first in tokenizer.json alone": (roberta, file(pre_tokenizer=BYTE_LEVEL)),
    "roberta, a space first in the settings alone": (roberta, config(add_prefix_space=True)),
    "roberta, no post-processor": (roberta, file(post_processor=None)),
    "roberta, a normalizer": (roberta, file(normalizer={"type": "NFKC"})),
    "roberta, other special tokens": (roberta, config(cls_token="<unk>")),
    "roberta, without the expression for words": (roberta, file(pre_tokenizer=BYTE_LEVEL | {"use_regex": False})),
    "roberta, whole words": (roberta, model(ignore_merges=True)),
    "xlm-roberta, Metaspace alone": (xlm_roberta, file(pre_tokenizer=META)),
    "xlm-roberta, Metaspace and spaces replaced": (
        xlm_roberta,
        file(pre_tokenizer=META, normalizer={"type": "Sequence", "normalizers": [PRECOMPILED, SPACES]}),
    ),
    "xlm-roberta, no space first": (xlm_roberta, config(add_prefix_space=False)),
    "xlm-roberta, a normalizer": (xlm_roberta, file(normalizer={"type": "NFKC"})),
    "xlm-roberta, no post-processor": (xlm_roberta, file(post_processor=None)),
    "xlm-roberta, other special tokens": (xlm_roberta, config(bos_token="<unk>")),
    "xlm-roberta, no settings, Metaspace alone": (
        xlm_roberta,
        lambda folder: (without_settings(folder), file(pre_tokenizer=META)(folder)),
    ),
    "camembert, Metaspace alone": (camembert, file(pre_tokenizer=META)),
}
REFUSED: dict[str, tuple[Case, str]] = {
    "another class": ((bert, config(tokenizer_class="MPNetTokenizer")), "unsupported tokenizer_class 'MPNetTokenizer'"),
    "an unknown class": ((bert, config(tokenizer_class="MyTokenizer")), "unsupported tokenizer_class 'MyTokenizer'"),
    "another kind of vocabulary": (
        (bert, config(tokenizer_class="RobertaTokenizer")),
        "tokenizer_class RobertaTokenizer does not fit to tokenizer.json, which has WordPiece",
    ),
    "another unknown token": ((xlm_roberta, model(unk_id=1)), "unsupported unk_id 1"),
    "bytes for unknown characters": ((xlm_roberta, model(byte_fallback=True)), "byte_fallback True"),
    "a file for other versions": (
        (bert, config(fast_tokenizer_files=["tokenizer.4.0.json"])),
        "unsupported setting fast_tokenizer_files",
    ),
    "a special token without a name": ((bert, config(cls_token=None)), "unsupported cls_token None"),
}


def write(case: Case, folder: Path) -> Path:
    """Writes the folder of a case, and returns it."""
    kind, work = case
    work(kind(folder))
    return folder


def effective(folder: Path) -> tuple[Tokenizer, str]:
    """Returns the tokenizer that the openvino backend uses, and its difference from tokenizer.json."""
    found = model_folder.locate(str(folder))
    plan = layout.transformer(found)
    return tokenizer_files.read_effective(found, "", plan.config, lower_case=plan.lower_case)
