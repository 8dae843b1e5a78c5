"""The catalog of known models: hub id, pinned commit, and properties.

The properties come from the model card (`source`) and from the files at the revision; revisions, languages and licences
were also compared with the metadata in MTEB (github.com/embeddings-benchmark/mteb, mteb/models). A model's own files
take precedence: modules.json over `modules` and `pooling`, isogloss.json over the rest.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

ENCODER = ("Transformer", "Pooling")
NORMALIZED = (*ENCODER, "Normalize")
# "query: " and "passage: " for retrieval; "query: " for symmetric tasks, and for vectors as features: card, FAQ 1.
E5_PROMPTS = {
    "query": "query: ",
    "document": "passage: ",
    "similarity": "query: ",
    "classification": "query: ",
    "clustering": "query: ",
}
MAIN = "main"
PROVIDER_NAMES = ("cohere", "openai", "nvidia")  # prefixes of sources at a provider: PROVIDER:MODEL
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model of the hub, and the properties that are known before it is downloaded."""

    hub_id: str
    revision: str  # commit, 40 hexadecimal digits
    dimensions: tuple[int, ...]  # offered: the model's own first, then its Matryoshka dimensions
    max_tokens: int  # of one text, special tokens included
    modules: tuple[str, ...]  # of modules.json, by their last names
    pooling: str  # mean or cls
    languages: tuple[str, ...]  # BCP 47
    license: str  # SPDX
    prompts: Mapping[str, str] = field(default_factory=dict)  # input type -> prompt; other types have none
    backend: str = "openvino"  # or sentence-transformers, for architectures that openvino/ does not support
    remark: str = ""  # a limitation that users must know before they choose it

    @property
    def name(self) -> str:
        """The model's name in the catalog: its hub id without the owner."""
        return self.hub_id.rpartition("/")[2]

    @property
    def source(self) -> str:
        """The page that the properties come from."""
        return f"https://huggingface.co/{self.hub_id}"


def _tags(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# "We used the following 50+ languages", on the cards and on sbert.net/docs/sentence_transformer/pretrained_models.html.
PARAPHRASE = _tags(
    """
    ar bg ca cs da de el en es et fa fi fr fr-CA gl gu he hi hr hu hy id it ja ka ko ku lt lv mk mn mr ms my nb nl
    pl pt pt-BR ro ru sk sl sq sr sv th tr uk ur vi zh-CN zh-TW
    """
)


# The list of languages at the head of the cards of the three multilingual-e5 models.
XLM_ROBERTA = _tags(
    """
    af am ar as az be bg bn br bs ca cs cy da de el en eo es et eu fa fi fr fy ga gd gl gu ha he hi hr hu hy id is
    it ja jv ka kk km kn ko ku ky la lo lt lv mg mk ml mn mr ms my ne nl no om or pa pl ps pt ro ru sa sd si sk sl
    so sq sr su sv sw ta te th tl tr ug uk ur uz vi xh yi zh
    """
)


# 109, those of the paper (arxiv.org/abs/2007.01852), as huggingface.co/setu4993/LaBSE lists them.
LABSE = _tags(
    """
    af am ar as az be bg bn bo bs ca ceb co cs cy da de el en eo es et eu fa fi fr fy ga gd gl gu ha haw he hi hmn
    hr ht hu hy id ig is it ja jv ka kk km kn ko ku ky la lb lo lt lv mg mi mk ml mn mr ms mt my ne nl no ny or pa
    pl pt ro ru rw si sk sl sm sn so sq sr st su sv sw ta te tg th tk tl tr tt ug uk ur uz vi wo xh yi yo zh zu
    """
)


# 74, at the head of the cards of the two arctic-embed v2.0 models.
ARCTIC = _tags(
    """
    af ar az be bg bn ca ceb cs cy da de el en es et eu fa fi fr gl gu he hi hr ht hu hy id is it ja jv ka kk km kn
    ko ky lo lt lv mk ml mn mr ms my ne nl pa pl pt qu ro ru si sk sl so sq sr sv sw ta te th tl tr uk ur vi yo zh
    """
)


KNOWN: tuple[KnownModel, ...] = (
    KnownModel(
        hub_id="sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        revision="e8f8c211226b894fcb81acc59f3b34ba3efd5f42",
        dimensions=(384,),
        max_tokens=128,
        modules=ENCODER,
        pooling="mean",
        languages=PARAPHRASE,
        license="Apache-2.0",
    ),
    KnownModel(
        hub_id="sentence-transformers/paraphrase-multilingual-mpnet-base-v2",  # an XLM-RoBERTa; MPNet was its teacher
        revision="4328cf26390c98c5e3c738b4460a05b95f4911f5",
        dimensions=(768,),
        max_tokens=128,
        modules=ENCODER,
        pooling="mean",
        languages=PARAPHRASE,
        license="Apache-2.0",
    ),
    KnownModel(
        hub_id="sentence-transformers/LaBSE",
        revision="836121a0533e5664b21c7aacc5d22951f2b8b25b",
        dimensions=(768,),
        max_tokens=256,
        modules=(*ENCODER, "Dense", "Normalize"),  # Dense: 768 -> 768, tanh
        pooling="cls",
        languages=LABSE,
        license="Apache-2.0",
    ),
    KnownModel(
        hub_id="sentence-transformers/distiluse-base-multilingual-cased-v2",
        revision="bfe45d0732ca50787611c0fe107ba278c7f3f889",
        dimensions=(512,),
        max_tokens=128,
        modules=(*ENCODER, "Dense"),  # 768 -> 512, tanh
        pooling="mean",
        languages=PARAPHRASE,
        license="Apache-2.0",
    ),
    KnownModel(
        hub_id="intfloat/multilingual-e5-small",
        revision="614241f622f53c4eeff9890bdc4f31cfecc418b3",
        dimensions=(384,),
        max_tokens=512,
        modules=NORMALIZED,
        pooling="mean",
        languages=XLM_ROBERTA,
        license="MIT",
        prompts=E5_PROMPTS,
    ),
    KnownModel(
        hub_id="intfloat/multilingual-e5-base",
        revision="d128750597153bb5987e10b1c3493a34e5a4502a",
        dimensions=(768,),
        max_tokens=512,
        modules=NORMALIZED,
        pooling="mean",
        languages=XLM_ROBERTA,
        license="MIT",
        prompts=E5_PROMPTS,
    ),
    KnownModel(
        hub_id="intfloat/multilingual-e5-large",
        revision="3d7cfbdacd47fdda877c5cd8a79fbcc4f2a574f3",
        dimensions=(1024,),
        max_tokens=512,
        modules=NORMALIZED,
        pooling="mean",
        languages=XLM_ROBERTA,
        license="MIT",
        prompts=E5_PROMPTS,
    ),
    KnownModel(
        hub_id="BAAI/bge-m3",
        # The main branch has only pickled weights. This commit, of refs/pr/130 on the hub, is its child, and adds the
        # same weights as safetensors.
        revision="9a0624b896d81da7492a910ffa53731274b6cf3d",
        dimensions=(1024,),
        max_tokens=8192,
        modules=NORMALIZED,
        pooling="cls",
        languages=XLM_ROBERTA,  # those of its encoder; the card says "more than 100" and names none
        license="MIT",
        remark="dense vectors only; the sparse and multi-vector heads are not served",
    ),
    KnownModel(
        hub_id="Snowflake/snowflake-arctic-embed-m-v2.0",
        revision="95c2741480856aa9666782eb4afe11959938017f",
        dimensions=(768, 256),
        max_tokens=8192,
        modules=NORMALIZED,
        pooling="cls",
        languages=ARCTIC,
        license="Apache-2.0",
        prompts={"query": "query: "},
        backend="sentence-transformers",
        remark="its architecture (GTE) is code in its own repository, which is never executed: the model loads only if "
        "the installed sentence-transformers includes the architecture",
    ),
    KnownModel(
        hub_id="Snowflake/snowflake-arctic-embed-l-v2.0",
        revision="edc2df7b6c25794b340229ca082e7c78782e6374",
        dimensions=(1024, 256),
        max_tokens=8192,
        modules=NORMALIZED,
        pooling="cls",
        languages=ARCTIC,
        license="Apache-2.0",
        prompts={"query": "query: "},
    ),
    KnownModel(
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
        dimensions=(384,),
        max_tokens=256,
        modules=NORMALIZED,
        pooling="mean",
        languages=("en",),
        license="Apache-2.0",
    ),
    KnownModel(
        hub_id="sentence-transformers/all-mpnet-base-v2",
        revision="9a3225965996d404b775526de6dbfe85d3368642",
        dimensions=(768,),
        max_tokens=384,
        modules=NORMALIZED,
        pooling="mean",
        languages=("en",),
        license="Apache-2.0",
        backend="sentence-transformers",  # MPNet: attention with a bias by relative position
    ),
    KnownModel(
        hub_id="mixedbread-ai/mxbai-embed-large-v1",
        revision="db9d1fe0f31addb4978201b2bf3e577f3f8900d2",
        dimensions=(1024, 512),
        max_tokens=512,
        modules=ENCODER,
        pooling="cls",
        languages=("en",),
        license="Apache-2.0",
        prompts={"query": "Represent this sentence for searching relevant passages: "},
    ),
)


def find(name: str) -> KnownModel | None:
    """Returns the known model of a name or hub id, or None."""
    return next((known for known in KNOWN if name in (known.name, known.hub_id)), None)


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model of the hub at a revision."""

    hub_id: str
    revision: str  # commit, tag or branch
    source: str  # as the user named it
    known: KnownModel | None = None

    def __str__(self) -> str:
        return self.hub_id if self.revision == MAIN else f"{self.hub_id}@{self.revision}"


def resolve(source: str) -> HubModel | None:
    """Resolves a known name or a hub id.

    Args:
        source: `NAME` or `OWNER/NAME`, either with `@REVISION`. Without a revision, a known model resolves to its
            pinned commit, another one to the main branch.

    Returns:
        The model, or None if `source` is neither.
    """
    name, _, revision = source.partition("@")
    known = find(name)
    if known is not None:
        return HubModel(known.hub_id, revision or known.revision, source, known)
    return HubModel(name, revision or MAIN, source) if HUB_ID.fullmatch(name) else None


def is_hosted(source: str) -> bool:
    """Returns True if a model's source begins with a provider, as in `cohere:embed-v4.0`."""
    host, colon, _ = source.partition(":")
    return bool(colon) and host in PROVIDER_NAMES


def closest_name(name: str) -> str:
    """Returns the known name that is closest to `name`, or an empty string."""
    known = {model.name.lower(): model.name for model in KNOWN}
    return "".join(known[near] for near in difflib.get_close_matches(name.partition("@")[0].lower(), known, n=1))
