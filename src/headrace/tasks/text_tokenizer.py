"""Loads a model's own tokeniser into the ``tokenizers`` library, which works without the GIL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import MissingExtra, ModelLoadError
from headrace.tasks.text_options import TextOptions

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PADDING_TOKENS = ("[PAD]", "<pad>")


def load_tokenizer(options: TextOptions) -> Tokenizer:
    """The tokeniser with our truncation and no padding, whatever its file says of either.

    Raises:
        ModelLoadError: the file is missing, broken, or lacks BERT's special tokens.
        MissingExtra: ``tokenizers`` is not installed.
    """
    # The engine runs several requests at once; a pool of threads below it would only fight
    # over the same cores, and warns when a worker process is forked.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers  # noqa: F401 - the helpers below import its parts
    except ImportError:
        raise MissingExtra("a text model", extra="text", package="tokenizers") from None
    path = Path(options.tokenizer)
    if not path.is_file():
        raise ModelLoadError(
            f"the tokeniser {path} is not there",
            hint="task_options.tokenizer is the path of a tokenizer.json or vocab.txt",
        )
    if path.suffix == ".txt":
        tokenizer = _from_vocabulary(path, options)
    else:
        tokenizer = _from_json(path, lower_case=options.lower_case is True)
    tokenizer.no_padding()
    _set_truncation(tokenizer, options)
    return tokenizer


def padding_id(tokenizer: Tokenizer, options: TextOptions) -> int:
    """The token that fills rows up; 0 where neither options nor vocabulary name one."""
    if options.pad_id is not None:
        return options.pad_id
    known = (tokenizer.token_to_id(token) for token in _PADDING_TOKENS)
    return next((number for number in known if number is not None), 0)


def _from_json(path: Path, *, lower_case: bool) -> Tokenizer:
    from tokenizers import Tokenizer, normalizers

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception, and a file may be anything
        raise ModelLoadError(
            f"{path} is not a tokenizer.json: {error}", hint="fetch it again"
        ) from error
    if lower_case:
        existing = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *existing])
    return tokenizer


def _from_vocabulary(path: Path, options: TextOptions) -> Tokenizer:
    """BERT's WordPiece: one token in a line, its number is the line's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path} cannot be read as a vocabulary: {error}") from error
    vocabulary = {line.removesuffix("\r"): number for number, line in enumerate(lines) if line}
    missing = [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in vocabulary]
    if missing:
        raise ModelLoadError(
            f"{path} is no BERT vocabulary: it lacks {', '.join(missing)}",
            hint="give the model's tokenizer.json instead",
        )
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - no secret
    special = [token for token in ("[PAD]", "[MASK]") if token in vocabulary]
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", *special])
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=options.lower_case is not False, strip_accents=options.strip_accents
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _set_truncation(tokenizer: Tokenizer, options: TextOptions) -> None:
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    if options.max_tokens <= special:
        raise ModelLoadError(
            f"max_tokens is {options.max_tokens}, of which {special} are the tokeniser's own",
            hint=f"set max_tokens to more than {special}",
        )
    if options.truncate:
        tokenizer.enable_truncation(options.max_tokens)
    else:
        tokenizer.no_truncation()
