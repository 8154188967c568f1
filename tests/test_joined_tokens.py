"""Joined tokens equal the tokenizer's own for every family; a tokenizer that does not agree is called on every pair."""

import numpy as np
import pandas as pd
import pytest
import transformers
from tokenizers import processors
from transformers import BertTokenizerFast, PreTrainedTokenizerBase, PreTrainedTokenizerFast, RobertaTokenizerFast

from criteria_hpo.data import joined_tokens
from criteria_hpo.data.joined_tokens import TokenRows, agreed_template, join_pairs, rows_pairwise, token_rows
from criteria_hpo.inputs.corpora import load_corpus

FAMILIES = [
    "Bert",  # WordPiece
    "MPNet",  # WordPiece, RoBERTa's template
    "Funnel",  # WordPiece, a token type of its own for [CLS]
    "Roberta",  # byte-level BPE
    "Deberta",  # byte-level BPE, token types
    "ModernBert",  # byte-level BPE, BERT's template
    "GPT2",  # byte-level BPE, nothing around a text
    "Llama",  # BPE with Metaspace
    "XLMRoberta",  # Unigram with Metaspace
    "DebertaV2",  # Unigram, token types
    "Albert",  # Unigram, lower case without accents
    "XLNet",  # Unigram, special tokens at the end
    "T5",  # Unigram, nothing before the post
    "TypedBert",  # marks the criterion by a type, without special tokens
]
ODD = [
    "",
    " ",
    "  leading",
    "trailing \n",
    "\ttabs\tand\u00a0spaces ",
    "naïve café — 😀 日本語",
    "e\u0301 ﬁ Ⅻ",
    "[SEP] </s> <s> [CLS] <mask>",
]


@pytest.fixture(scope="module")
def pairs() -> pd.DataFrame:
    "Ordinary and unusual posts with ordinary and unusual criteria, every post with every criterion."
    demo = load_corpus("demo")
    posts = [*demo.post.unique()[:6], *ODD, " ".join(demo.post.unique()[:6])]
    criteria = [*demo.criterion.unique()[:3], *ODD[2:]]
    return pd.DataFrame([(post, criterion) for post in posts for criterion in criteria], columns=["post", "criterion"])


def made(family: str, texts: list[str]) -> PreTrainedTokenizerBase:
    "A tokenizer of this family with a vocabulary learnt from `texts`."
    if family == "ModernBert":  # the checkpoint's tokenizer: RoBERTa's pieces within BERT's template, without types
        base = made("Roberta", texts)
        backend = base.backend_tokenizer
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
        return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", model_input_names=["input_ids"])
    if family == "TypedBert":
        backend = made("Bert", texts).backend_tokenizer
        backend.post_processor = processors.TemplateProcessing(single="$A:1", pair="$A:1 $B:2", special_tokens=[])
        return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    cls = getattr(transformers, f"{family}TokenizerFast")
    return cls().train_new_from_iterator(texts, 400, show_progress=False)


def joined(pairs: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, limit: int, long_posts: str) -> TokenRows:
    "The rows of the fast way, which this tokenizer must be able to take."
    template = agreed_template(pairs, tokenizer, limit, long_posts)
    assert template is not None
    parts = list(join_pairs(pairs, tokenizer, template, limit, long_posts))
    return TokenRows(*(None if part[0] is None else np.concatenate(part) for part in zip(*parts)))


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_types_lengths_and_cuts_equal_those_of_whole_pairs(family, pairs):
    tokenizer = made(family, [*pairs.post[::9][:6], *pairs.criterion[:4]])
    needed = max(len(ids) for ids in tokenizer(pairs.criterion.tolist(), add_special_tokens=False)["input_ids"])
    tight = needed + tokenizer.num_special_tokens_to_add(pair=True) + 5
    for limit, long_posts in ((10**6, "truncate"), (tight, "truncate"), (tight, "head_tail"), (tight - 4, "head_tail")):
        own, fast = rows_pairwise(pairs, tokenizer, limit, long_posts), joined(pairs, tokenizer, limit, long_posts)
        for name, a, b in zip(TokenRows._fields, own, fast):
            assert np.array_equal(a, b), (family, limit, long_posts, name)
            assert a is None or a.dtype == b.dtype
        assert (own.cut > 0).any() == (limit < 10**6) and own.lengths.max() <= limit


def test_the_library_itself_cuts_like_truncate(pairs):
    tokenizer = made("Bert", [*pairs.post[::9][:6]])
    long_enough = pairs[pairs.post.str.strip() != ""]
    fast = joined(long_enough, tokenizer, 300, "truncate")
    own = tokenizer(long_enough.post.tolist(), long_enough.criterion.tolist(), truncation="only_first", max_length=300)
    assert (fast.cut > 0).any() and fast.input_ids.tolist() == np.concatenate(own["input_ids"]).tolist()


class SpaceBeforeCriterion(RobertaTokenizerFast):
    def __call__(self, text, text_pair=None, **options):
        return super().__call__(text, None if text_pair is None else [f" {one}" for one in text_pair], **options)


class ContentDependentTemplate(BertTokenizerFast):
    "Long posts have a second [SEP]."

    def __call__(self, text, text_pair=None, **options):
        return super().__call__([f"{one} [SEP]" if text_pair and len(one) > 400 else one for one in text], text_pair, **options)


class TypesOfPairs(BertTokenizerFast):
    "The type of a criterion depends on its post."

    def __call__(self, text, text_pair=None, **options):
        encoded = super().__call__(text, text_pair, **options)
        for post, types in zip(text, encoded["token_type_ids"]):
            types[-1:] = [int(post.isascii())]
        return encoded


class NormalisesAcross(BertTokenizerFast):
    "White space at the end of a post and the beginning of the criterion is seen together."

    def __call__(self, text, text_pair=None, **options):
        if text_pair is not None:
            text = [f"{post}." if post[-1:].isspace() and not one[:1].isspace() else post for post, one in zip(text, text_pair)]
        return super().__call__(text, text_pair, **options)


class WithoutFastBackend(BertTokenizerFast):
    is_fast = False


class CriterionFirst(BertTokenizerFast):
    def __call__(self, text, text_pair=None, **options):
        first, second = (text, text_pair) if text_pair is None else (text_pair, text)
        return super().__call__(first, second, **options)


@pytest.mark.parametrize(
    "cls",
    [
        SpaceBeforeCriterion,
        ContentDependentTemplate,
        TypesOfPairs,
        NormalisesAcross,
        WithoutFastBackend,
        CriterionFirst,
    ],
)
def test_a_tokenizer_that_does_not_agree_is_called_on_every_pair_with_one_log_line(cls, pairs, caplog):
    family = "Roberta" if issubclass(cls, RobertaTokenizerFast) else "Bert"
    plain = made(family, [*pairs.post[::9][:6], *pairs.criterion[:4]])
    tokenizer = cls(tokenizer_object=plain.backend_tokenizer)
    with caplog.at_level("INFO", logger=joined_tokens.logger.name):
        parts = list(token_rows(pairs, tokenizer, 10**6, "truncate"))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "This tokenizer does not read the texts of a pair independently"
    ]
    own = tokenizer(pairs.post.tolist(), pairs.criterion.tolist())
    assert np.concatenate([part.input_ids for part in parts]).tolist() == np.concatenate(own["input_ids"]).tolist()
    assert agreed_template(pairs, plain, 10**6, "truncate") is not None


def test_the_tokenizer_reads_each_text_once(pairs, monkeypatch):
    many = pd.concat([pairs] * 40, ignore_index=True)
    tokenizer, read = made("Bert", [*pairs.post[::9][:6]]), []
    real = BertTokenizerFast.__call__

    def counted(self, text, text_pair=None, **options):
        read.append(len(text))
        return real(self, text, text_pair, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    rows = sum(len(part.lengths) for part in token_rows(many, tokenizer, 500, "truncate"))
    assert rows == len(many) > 5_000
    assert sum(read) < 250, "the comparison reads some pairs, and every distinct text is read once"
