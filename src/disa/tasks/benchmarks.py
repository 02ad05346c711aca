"""Ready-made benchmarks: where each is published, under which licence, and how its rows are recognised.

Two digests can vouch for rows. ``files`` has the SHA-256 of each published file, where it is known; ``contents``
has row counts and :func:`rows_digest` of known contents, whatever file they are read from. Where a digest is
None nobody here has seen the published rows: loading then says *not verified*, and what it found.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence

from disa.errors import DisaError

BOXED = "{prompt}\nPlease reason step by step, and put your final answer within \\boxed{}."
_COMPLETE = (
    "Complete the following Python function. Answer with the whole function in one Python code block.\n\n"
    "```python\n{prompt}\n```"
)
_FROM_TESTS = (
    "{prompt}\nYour code should pass these tests:\n\n```python\n{tests}\n```\n\n"
    "Answer with the whole program in one Python code block."
)
_CONTEST = "{prompt}\n\nAnswer with the whole program in one Python code block."


@dataclasses.dataclass(frozen=True)
class Contents:
    """Rows that are known to be a benchmark's."""

    rows: int
    digest: str | None
    """:func:`rows_digest`; None where the rows could not be seen when this was written."""
    of: str
    """What was digested."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One entry of the table."""

    hub: str
    """Data set id on the Hugging Face hub."""
    revision: str
    """Commit there; ``main`` where the file's digest alone pins it."""
    files: dict[str, str | None]
    """Files of the data set, with the SHA-256 of each where it is known."""
    licence: str
    contents: tuple[Contents, ...]
    """First the published rows, then other known copies of them."""
    verifier: str = "maths"
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    answer_after: str = ""
    prompt_template: str = BOXED
    use: str = "heldout"
    """Split of a run that the rows go to."""


_PUBLISHED = "the published rows"
_UNSEEN = "the published rows, not seen here"
# The hub's own SHA-256 of these files, as public projects that pin this revision record it.
_CONTEST_FILES = {
    "test.jsonl": "2bd02b38beb48e8c46b5b9987095d999ff38cd8efc255ea5d58974317c48f63f",
    "test2.jsonl": "095df7c5daf15f882c51a9deb84085cff1e073495a5dbcf95015a564d485f3a3",
    "test3.jsonl": "28ed26cc83363ce3f1fe2d5fad9f8393077beb1907b167a31bd3b32f80801b79",
    "test4.jsonl": "d711138ddaebfcf5f8ec6a4283ee677298c0f5c5d374a235af92aaf0584510da",
    "test5.jsonl": "7f77571c2a6df0c2a72a3277650309f67e01e0008e18117e624633df53f81214",
    "test6.jsonl": "bb4c364f71921c4495a6ad15abe1a927350b720009f4933e2e71f8af0f6fd1f5",
}

BENCHMARKS: dict[str, Benchmark] = {
    "aime2024": Benchmark(
        hub="HuggingFaceH4/aime_2024",
        revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        files={"data/train-00000-of-00001.parquet": "26139847601a5037c237d5928b195e7260ca8074cf4f264b794af42847f79ccf"},
        licence="not stated on the card",
        contents=(
            Contents(30, None, _UNSEEN),
            Contents(
                30,
                "1a5438f97fe03f2ab83166e36d4c23cac4f0c0da821374faee6b21b611fd6208",
                "simpleRL-reason's copy (hkust-nlp/simpleRL-reason, aime24)",
            ),
        ),
        columns={"prompt": "problem"},
    ),
    "aime2025": Benchmark(
        hub="math-ai/aime25",
        revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
        files={"test.jsonl": "b4e273c02d3e7fe1b74b59eae768fc8230bfb0f79539890cb56f4361caac0331"},
        licence="not stated on the card",
        contents=(Contents(30, "8003512235d882c92bd0518b3eec3633bcc6177b435aef4e5f0638109132ac36", _PUBLISHED),),
        columns={"prompt": "problem"},
    ),
    "amc2023": Benchmark(
        hub="math-ai/amc23",
        revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
        files={"test-00000-of-00001.parquet": "b696e87ba47be4e879a60fd4ef1d4aa522ba78c5ae013c6aff5cc9788a397c5e"},
        licence="not stated on the card",
        contents=(
            Contents(40, None, _UNSEEN),
            Contents(
                40,
                "522d23986fded5437b902cc5138cd87513f1ba49818b1605fa5364a20088ad69",
                "simpleRL-reason's copy (hkust-nlp/simpleRL-reason, amc23)",
            ),
        ),
        columns={"prompt": "question"},
    ),
    "math500": Benchmark(
        hub="HuggingFaceH4/MATH-500",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        files={"test.jsonl": "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132"},
        licence="not stated on the card; MATH, of which these are rows, is MIT",
        contents=(Contents(500, "3010192801419ad19ccc210b3afd90f78571626000689b99ccc6be76f90f01ad", _PUBLISHED),),
        columns={"prompt": "problem", "id": "unique_id"},
    ),
    "minerva_math": Benchmark(
        hub="math-ai/minervamath",
        revision="ee46ddc498933b1977577953250ca5c66be64f96",
        files={"test.jsonl": None},
        licence="not stated on the card",
        contents=(
            Contents(
                272,
                "cb3faa560f509e946577d7c1d81fd818c6f9dd1fda33e933957cf46767cdfa4d",
                "copies that agree in every row (YuYingLi0/FiRe-OPD, Dominic789654/llm_benchmark_eval)",
            ),
        ),
        columns={"prompt": "question"},
    ),
    "olympiadbench": Benchmark(
        hub="Hothan/OlympiadBench",
        revision="91184b52131e7fc9455fef848035173aea8cc01a",
        files={"OlympiadBench/OE_TO_maths_en_COMP/OE_TO_maths_en_COMP.parquet": None},
        licence="Apache-2.0",
        contents=(
            Contents(674, None, _UNSEEN),
            Contents(
                675,
                "c93bdb2dc9eee9991722e682732aa7c2b111bda945419a079728afd381ef022e",
                "simpleRL-reason's copy, one problem more (hkust-nlp/simpleRL-reason)",
            ),
        ),
        columns={"prompt": "question", "answer": "final_answer", "multiple": "is_multiple_answer"},
    ),
    "gsm8k": Benchmark(
        hub="openai/gsm8k",
        revision="740312add88f781978c0658806c59bc2815b9866",
        files={"main/test-00000-of-00001.parquet": "ee7b8da9e381df27b9e3f7758a159ab2bdaa4dbaa910546cbbc47e0cb44e4f59"},
        licence="MIT",
        contents=(
            Contents(
                1319,
                "45b495d9d942d38206e4068a761117694eb9952dda7fe5a86da31dd380fa563c",
                "openai/grade-school-math's test.jsonl",
            ),
        ),
        columns={"prompt": "question", "solution": "answer"},
        answer_after="####",
    ),
    "gsm8k_train": Benchmark(
        hub="openai/gsm8k",
        revision="740312add88f781978c0658806c59bc2815b9866",
        files={"main/train-00000-of-00001.parquet": "ea82612ea9582142387730c793eb67d3b12849002bc0b7fa6f8efafa7351419d"},
        licence="MIT",
        contents=(
            Contents(
                7473,
                "2b8f286271ad0a513e3f75e5b92f392aa1f7cdaad553e7f0112f5e0f71e27d9e",
                "openai/grade-school-math's train.jsonl",
            ),
        ),
        columns={"prompt": "question", "solution": "answer"},
        answer_after="####",
        use="train",
    ),
    "dapo_math_17k": Benchmark(
        hub="open-r1/DAPO-Math-17k-Processed",
        revision="31dd309567e3da778038cc87d868b6097a3ccf68",
        files={"all/train-00000-of-00001.parquet": None},
        licence="not stated on the card; BytedTsinghua-SIA/DAPO-Math-17k, which it deduplicates, is Apache-2.0",
        contents=(Contents(17398, None, _UNSEEN),),
        columns={"answer": "solution"},
        use="train",
    ),
    "humaneval": Benchmark(
        hub="openai/openai_humaneval",
        revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
        files={
            "openai_humaneval/test-00000-of-00001.parquet": (
                "2f2871a15fbc95b6c683043359f4ed8e144c5a1c4f24f25f66bc51f598dfcfb6"
            )
        },
        licence="MIT",
        contents=(
            Contents(
                164,
                "fc4f0aced42a102f92c0e9b83b3d541ba68b4cdae3c458c04d7a25f8f3614dd4",
                "openai/human-eval's HumanEval.jsonl.gz",
            ),
        ),
        verifier="code",
        columns={"id": "task_id", "solution": "canonical_solution"},
        prompt_template=_COMPLETE,
    ),
    "humaneval_plus": Benchmark(
        hub="evalplus/humanevalplus",
        revision="main",
        files={"test.jsonl": "908377f1daf28dcb36846db73a5662b2e05a9907407c2696c89ad9d3b0b04492"},
        licence="Apache-2.0",
        contents=(
            Contents(164, None, _UNSEEN),
            Contents(
                164,
                "39c68f51fe8525d406bcea695c5e069fe33f6f8afc15684abfe638e2e4029519",
                "HumanEvalPlus-Mini of evalplus/humanevalplus_release: fewer tests",
            ),
        ),
        verifier="code",
        columns={"id": "task_id", "solution": "canonical_solution"},
        prompt_template=_COMPLETE,
    ),
    "mbpp": Benchmark(
        hub="google-research-datasets/mbpp",
        revision="4bb6404fdc6cacfda99d4ac4205087b89d32030c",
        files={
            "sanitized/test-00000-of-00001.parquet": "e9e9efa2c0d59ef5e55537a9d126b8f875d5ac010a8d75628d76824884e15850"
        },
        licence="CC-BY-4.0",
        contents=(
            Contents(
                257,
                "e7f571cc435184707cc6c4c9776cee0dee2b12eacd344ea95ad9e0c751b43b8b",
                "tasks 11 to 510 of google-research's sanitized-mbpp.json",
            ),
        ),
        verifier="code",
        columns={"id": "task_id", "tests": "test_list", "setup": "test_imports", "solution": "code"},
        prompt_template=_FROM_TESTS,
    ),
    "mbpp_sanitized": Benchmark(
        hub="google-research-datasets/mbpp",
        revision="4bb6404fdc6cacfda99d4ac4205087b89d32030c",
        files={
            "sanitized/train-00000-of-00001.parquet": (
                "d95f8ad6d2fff08fe4826122d6e3e31f75716825d0c5c340d297aca5e9e0de0e"
            ),
            "sanitized/test-00000-of-00001.parquet": (
                "e9e9efa2c0d59ef5e55537a9d126b8f875d5ac010a8d75628d76824884e15850"
            ),
            "sanitized/validation-00000-of-00001.parquet": (
                "27e065fcab3c863959933328a7fdbf404e1bcb5464b1be6fe0dcd9530e420204"
            ),
            "sanitized/prompt-00000-of-00001.parquet": (
                "73c623309b7b5d65fd5661204b35f779f8e66301aa9832d1ad4b8fc3b21151fd"
            ),
        },
        licence="CC-BY-4.0",
        contents=(
            Contents(
                427,
                "1f6cce9d76095f7879caf658df7800c7f4784a90bd77af9e148898cc9f660169",
                "google-research's sanitized-mbpp.json",
            ),
        ),
        verifier="code",
        columns={"id": "task_id", "tests": "test_list", "setup": "test_imports", "solution": "code"},
        prompt_template=_FROM_TESTS,
    ),
    "livecodebench": Benchmark(
        hub="livecodebench/code_generation_lite",
        revision="0fe84c3912ea0c4d4a78037083943e8f0c4dd505",
        files=_CONTEST_FILES,
        licence="CC, as its card states it",
        contents=(Contents(1055, None, _UNSEEN),),
        verifier="code",
        columns={"id": "question_id"},
        prompt_template=_CONTEST,
    ),
    "livecodebench_v6": Benchmark(
        hub="livecodebench/code_generation_lite",
        revision="0fe84c3912ea0c4d4a78037083943e8f0c4dd505",
        files={"test6.jsonl": _CONTEST_FILES["test6.jsonl"]},
        licence="CC, as its card states it",
        contents=(Contents(175, None, _UNSEEN),),
        verifier="code",
        columns={"id": "question_id"},
        prompt_template=_CONTEST,
    ),
}


def rows_digest(rows: Iterable[Sequence[str]]) -> str:
    """Digest of rows, each its problem and then what it is judged by, whatever their order and file format.

    Texts are compared in Unicode's composed form (NFC) with runs of white space as one space: copies of a
    data set differ in these and mean the same.
    """
    canonical = sorted(json.dumps([_canonical(text) for text in row], ensure_ascii=False) for row in rows)
    return hashlib.sha256("\n".join(canonical).encode()).hexdigest()


def _canonical(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def verify(name: str, files: dict[str, str], rows: int, digest: str, *, from_hub: bool, where: str) -> str:
    """What vouches for the rows just loaded.

    Parameters
    ----------
    name : str
        Entry of the table.
    files : dict of str to str
        SHA-256 of the files that were read.
    rows : int
        How many rows they hold.
    digest : str
        Their :func:`rows_digest`.
    from_hub : bool
        Whether the files are the hub's own; a local file may hold the same rows in another form.
    where : str
        Source, for the error message.

    Raises
    ------
    DisaError
        Where the number of rows is another, or a digest is known and neither it nor a file's is right.
    """
    entry = BENCHMARKS[name]
    pinned = None not in entry.files.values()
    if pinned and sorted(files.values()) == sorted(str(d) for d in entry.files.values()):
        return "verified: SHA-256 of the published files"
    known = [contents for contents in entry.contents if contents.rows == rows]
    if not known:
        expected = " or ".join(str(contents.rows) for contents in entry.contents)
        raise DisaError(f"{rows} rows found, {name} has {expected}", where=where, fix=_FIX)
    for contents in known:
        if contents.digest == digest:
            return f"verified: digest of {contents.of}"
    if (from_hub and pinned) or all(contents.digest is not None for contents in known):
        raise DisaError(f"the rows are not those of {name} (digest {digest[:16]}...)", where=where, fix=_FIX)
    return f"not verified: {rows} rows as expected, but no digest of the published rows is known; found {digest}"


_FIX = "load the benchmark from its hub id, or, if the rows are meant to differ, name the file without benchmark:"
