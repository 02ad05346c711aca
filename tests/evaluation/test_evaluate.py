"""``disa evaluate`` from the command line: folders, adapters and a served model, stopped and continued."""

import functools
import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from openai_server import OpenAIServer
from peft import LoraConfig, get_peft_model

from disa.cli.main import main
from disa.errors import DisaError
from disa.evaluation import run as module
from disa.evaluation.metrics import clustered_mean, pass_at_k
from disa.evaluation.models import ModelSpec, adapter_base
from disa.evaluation.nucleus import pick_in_nucleus
from disa.evaluation.task_prompts import TaskPrompts, chosen_prompts
from disa.lm.loading import load_model, load_tokenizer
from disa.lm.sampler import draw_rows
from disa.runs.parquet_rows import read_rows
from disa.runs.records import EvaluationRecord, PromptValue
from disa.tasks import make_task
from disa.tasks.config import GraphColoringConfig
from disa.tasks.graph_coloring import GraphColoring

TASK = ["--task", "graph_coloring", "--option", "vertices=5", "--option", "colors=4", "--option", "heldout_prompts=6"]
TASK += ["--option", "train_prompts=6", "--option", "warmup_prompts=24", "--max-tokens", "7"]


def evaluate(*arguments):
    code = main(["evaluate", *map(str, arguments)])
    assert code == 0
    return code


def tiny_server(folder, **settings):
    """Serve the tiny reference: greedy decoding where the request asks for it, else seeded by the request."""
    model, tokenizer, lock = load_model(folder), load_tokenizer(folder), threading.Lock()

    def answer(path, body):
        text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        numbers = np.random.default_rng(body["seed"]).random((1, body["max_tokens"]))
        how = {"temperature": body["temperature"], "pick": functools.partial(pick_in_nucleus, top_p=body["top_p"])}
        with lock:
            (drawn,) = draw_rows(model, tokenizer, [tokenizer(text)["input_ids"]], numbers, **how)
        text = tokenizer.decode(drawn.completion_ids, skip_special_tokens=True)
        return text, "length" if drawn.truncated else "stop"

    return OpenAIServer(answer, **settings)


@pytest.fixture(scope="module")
def two_models(finished_run, tmp_path_factory):
    """Results of reference and proposal on the same problems."""
    output = tmp_path_factory.mktemp("evaluated")
    folders = [f"{name}={finished_run / 'warmup' / name}" for name in ("reference", "proposal")]
    evaluate(*folders, *TASK, "--samples", 4, "--ks", "1,2,4", "--output", output)
    return output


def test_numbers_follow_from_the_sampled_rows(two_models):
    results = json.loads((two_models / "results.json").read_text())
    for model in ("reference", "proposal"):
        rows = read_rows(two_models / "samples" / "graph_coloring" / model, EvaluationRecord)
        assert len(rows) == 6 * 4
        by_problem = {}
        for row in rows:
            by_problem.setdefault(row.prompt_id, []).append(row.reward == 1.0)
        for k in (1, 2, 4):
            expected = clustered_mean(pass_at_k(c, k) for c in by_problem.values())
            found = results["summary"][model]["graph_coloring"][f"pass@{k}"]
            # Float64 means of six values of order one.
            assert (found["value"], found["se"]) == pytest.approx((expected.value, expected.se), rel=0, abs=1e-12)
            assert found["n_prompts"] == 6
    assert {r.correct for r in rows} == {True, False}


def test_values_by_problem_are_what_the_means_are_made_of(two_models):
    values = read_rows(two_models / "values.parquet", PromptValue)
    results = json.loads((two_models / "results.json").read_text())
    for model in ("reference", "proposal"):
        summary = results["summary"][model]["graph_coloring"]
        ours = [v for v in values if v.model == model]
        assert {v.metric for v in ours} == set(summary)
        for name, measured in summary.items():
            found = [v.value for v in ours if v.metric == name]
            assert (len(found), np.mean(found)) == (measured["n_prompts"], pytest.approx(measured["value"], abs=1e-12))


def test_everything_needed_to_draw_the_samples_again_is_recorded(two_models):
    results = json.loads((two_models / "results.json").read_text())
    settings = results["settings"]
    assert (settings["temperature"], settings["top_p"], settings["max_tokens"], settings["seed"]) == (1.0, 1.0, 7, 0)
    assert settings["samples"] == 4 and settings["ks"] == [1, 2, 4]
    facts = results["models"]["reference"]
    assert facts["source"]["weights"] and facts["source"]["tokenizer"] and facts["packages"]["torch"]
    assert facts["source"]["prompt_format"] == "text"
    assert results["tasks"]["graph_coloring"]["problems"] == 6


def test_the_leaderboard_file_has_a_value_and_an_error_for_every_metric(two_models):
    board = json.loads((two_models / "leaderboard" / "proposal.json").read_text())
    assert {"config_general", "results", "versions", "config_tasks", "n-samples"} <= set(board)
    for task in ("graph_coloring", "all"):
        metrics = {n for n in board["results"][task] if not n.endswith("_stderr")}
        assert {"mean@4", "pass@1", "pass@4"} <= metrics
        assert {f"{n}_stderr" for n in metrics} <= set(board["results"][task])
    assert board["versions"] == {"graph_coloring": GraphColoring.version}
    assert board["n-samples"]["graph_coloring"] == {"original": 6, "effective": 6}


def test_the_table_names_models_metrics_and_the_paired_test(two_models):
    table = (two_models / "table.txt").read_text()
    assert table.splitlines()[0].split() == ["graph_coloring", "(6", "prompts)", "reference", "proposal"]
    assert "Mean@4" in table and "Mean@1" not in table and "pass@2" in table
    assert "proposal - reference, Mean@4" in table and "p = " in table


def test_a_finished_evaluation_is_not_done_again(two_models, finished_run, monkeypatch, capsys):
    monkeypatch.setattr(module, "sample_model", None)  # would fail if called
    folder = finished_run / "warmup" / "reference"
    evaluate(f"reference={folder}", *TASK, "--samples", 4, "--ks", "4", "--output", two_models, "--json")
    captured = capsys.readouterr()
    assert list(json.loads(captured.out)["models"]) == ["reference"]
    assert "finished earlier" in captured.err


def test_a_killed_evaluation_continues_with_the_missing_part_also_in_other_parts(finished_run, tmp_path, monkeypatch):
    folder = finished_run / "warmup" / "reference"
    command = [f"m={folder}", *TASK, "--samples", 2, "--problems-per-part", 2, "--output"]
    evaluate(*command, tmp_path / "whole")
    judged, calls = module.draw_and_judge, []

    def killed_at_the_second_part(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return judged(*arguments)

    monkeypatch.setattr(module, "draw_and_judge", killed_at_the_second_part)
    assert main(["evaluate", *map(str, command), str(tmp_path / "killed")]) == 130
    evaluate(*command, tmp_path / "killed")
    assert len(calls) == 4  # one part before the kill, one killed, and the two that were missing
    shutil.copytree(tmp_path / "killed", tmp_path / "other")
    (tmp_path / "other" / "samples" / "graph_coloring" / "m" / "manifest.json").unlink()
    command[command.index("--problems-per-part") + 1] = 3
    evaluate(*command, tmp_path / "other")
    whole, killed, other = (
        read_rows(tmp_path / name / "samples" / "graph_coloring" / "m", EvaluationRecord)
        for name in ("whole", "killed", "other")
    )
    assert whole == killed == other


def test_another_setting_draws_again_and_loses_nothing(finished_run, tmp_path):
    command = [f"m={finished_run / 'warmup' / 'reference'}", *TASK, "--output", tmp_path, "--samples", 2]
    evaluate(*command)
    evaluate(*command, "--top-p", 0.5)
    assert (tmp_path / "superseded" / "samples-graph_coloring-m.0" / "manifest.json").is_file()


def test_a_served_model_gets_the_numbers_of_the_folder_it_serves(finished_run, tmp_path):
    folder = finished_run / "warmup" / "reference"
    how = [*TASK, "--temperature", 0, "--samples", 1, "--timeout", 20]
    with tiny_server(folder, failures=[429, 500, "malformed", "cut body"]) as server:
        models = [f"local={folder}", f"served=openai:{server.url}#tiny"]
        evaluate(*models, *how, "--prompt-format", "text", "--output", tmp_path / "text")
        # The server takes the last message's text for the prompt, so a chat changes the wire and nothing else.
        evaluate(models[1], *how, "--prompt-format", "chat", "--stream", "--output", tmp_path / "chat")
    assert [set(r) & {"prompt", "messages"} for r in server.requests] == [{"prompt"}] * 10 + [{"messages"}] * 6
    local, served, streamed = (
        [
            (r.prompt_id, r.completion, r.truncated, r.reward)
            for r in read_rows(tmp_path / where / "samples" / "graph_coloring" / name, EvaluationRecord)
        ]
        for where, name in (("text", "local"), ("text", "served"), ("chat", "served"))
    )
    assert local == served == streamed
    results = json.loads((tmp_path / "text" / "results.json").read_text())
    assert results["models"]["served"]["source"]["retries"] == 4
    assert results["comparisons"][0]["difference"] == 0.0


def test_seeds_of_served_samples_differ_and_are_the_same_in_any_order(finished_run, tmp_path):
    with tiny_server(finished_run / "warmup" / "reference") as server:
        for name in ("one", "two"):
            evaluate(
                f"m=openai:{server.url}#tiny", *TASK, "--samples", 3, "--prompt-format", "text",
                "--output", tmp_path / name, "--concurrency", 1 if name == "one" else 4,
            )  # fmt: skip
        seeds = [(r["prompt"], r["seed"]) for r in server.requests]
    assert sorted(seeds[:18]) == sorted(seeds[18:])
    assert len({seed for _, seed in seeds[:18]}) == 18
    one, two = (read_rows(tmp_path / n / "samples" / "graph_coloring" / "m", EvaluationRecord) for n in ("one", "two"))
    assert one == two


def test_request_fields_reach_the_endpoint_and_local_models_refuse_them(finished_run, tmp_path, capsys):
    folder = finished_run / "warmup" / "reference"
    extra = json.dumps({"top_k": 5, "seed": None})
    how = [*TASK, "--samples", 1, "--request", extra]
    with OpenAIServer(lambda path, body: "12341") as server:
        evaluate(f"m=openai:{server.url}#tiny", *how, "--output", tmp_path, "--system-prompt", "Be brief.")
    assert all(r["top_k"] == 5 and "seed" not in r for r in server.requests)
    assert server.requests[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert main([str(a) for a in ["evaluate", f"m={folder}", *how, "--output", tmp_path / "local"]]) == 2
    assert "for endpoints" in capsys.readouterr().err


def test_an_endpoint_that_fails_names_the_prompt_and_keeps_what_is_done(tmp_path, capsys):
    # The first part's two requests succeed, the third request fails.
    with OpenAIServer(lambda path, body: "12341", [None, None, 400]) as server:
        command = ["evaluate", f"m=openai:{server.url}#x", *TASK, "--samples", "1", "--problems-per-part", "2"]
        command += ["--attempts", "1", "--concurrency", "1", "--output", str(tmp_path)]
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "scripted 400" in error and "prompt " in error and "draw 0" in error
        before = len(server.requests)
        evaluate(*command[1:])
    assert before in (3, 4)  # a fourth may have left before the failure was seen
    assert len(server.requests) - before == 4


def test_an_adapter_is_evaluated_on_its_base_and_fingerprinted_with_it(finished_run, tmp_path):
    base = finished_run / "warmup" / "reference"
    adapted = get_peft_model(load_model(base), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.5)  # a fresh adapter would change nothing
    adapted.save_pretrained(tmp_path / "adapter")
    spec = ModelSpec.parse(f"tuned={tmp_path / 'adapter'}")
    assert (spec.name, spec.kind) == ("tuned", "adapter")
    assert set(spec.identity()) == {"files", "base"}
    evaluate(f"base={base}", f"tuned={tmp_path / 'adapter'}", *TASK, "--samples", 4, "--output", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    sources = {name: facts["source"] for name, facts in results["models"].items()}
    assert sources["base"]["weights"] != sources["tuned"]["weights"]
    assert sources["base"]["tokenizer"] == sources["tuned"]["tokenizer"]
    rows = [
        [r.completion for r in read_rows(tmp_path / "out" / "samples" / "graph_coloring" / n, EvaluationRecord)]
        for n in ("base", "tuned")
    ]
    assert rows[0] != rows[1]


def test_an_adapters_base_is_also_found_beside_it(reference_folder, tmp_path):
    shutil.copytree(reference_folder, tmp_path / "adapter" / "base")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": "base"}))
    assert adapter_base(tmp_path / "adapter").where == str(tmp_path / "adapter" / "base")
    config.write_text("{}")
    with pytest.raises(DisaError, match="names no base model"):
        adapter_base(tmp_path / "adapter")


def test_a_recipe_gives_task_sampling_and_samples(run_copy, tmp_path):
    recipe, run = run_copy
    evaluate(run / "warmup" / "reference", "--recipe", recipe, "--output", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["settings"]["max_tokens"] == 7
    assert (results["settings"]["samples"], results["settings"]["ks"]) == (4, [1, 4])
    # The same uniform numbers and weights as the run's own evaluation stage: the same completions.
    import pyarrow.parquet as pq

    own = pq.read_table(next((run / "7_evaluation" / "reference").glob("*.parquet"))).to_pylist()
    ours = read_rows(tmp_path / "out" / "samples" / "graph_coloring" / "reference", EvaluationRecord)
    texts = {(r.prompt_id, r.draw): r.completion for r in ours}
    shared = [(r, texts[r["prompt_id"], r["draw"]]) for r in own if (r["prompt_id"], r["draw"]) in texts]
    assert len(shared) == len(ours) == 12
    assert all(r["completion"] == text for r, text in shared)


def test_a_limit_chooses_by_the_seed_and_a_larger_one_only_adds():
    task = make_task(GraphColoringConfig(name="graph_coloring", heldout_prompts=20, train_prompts=5, warmup_prompts=0))
    prompts = task.prompts("heldout")
    some, more = chosen_prompts(prompts, 5, 1), chosen_prompts(prompts, 9, 1)
    assert len(some) == 5 and set(some) < set(more)
    assert [p for p in prompts if p in some] == some
    assert chosen_prompts(prompts, 5, 2) != some
    assert chosen_prompts(prompts, 99, 1) == prompts
    some = TaskPrompts.of(task, name="t", split="heldout", limit=5, seed=1)
    assert some.content != TaskPrompts("t", task, prompts).content


def test_a_reward_that_raises_is_told_as_in_a_run(finished_run, tmp_path, capsys, monkeypatch):
    def raising(self, prompts, completions):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(GraphColoring, "rewards", raising)
    command = ["evaluate", f"m={finished_run / 'warmup' / 'reference'}", *TASK, "--samples", "1", "--output", tmp_path]
    assert main([str(a) for a in command]) == 2
    assert "the reward raised ZeroDivisionError: division by zero" in capsys.readouterr().err


@pytest.mark.parametrize(("own", "parts"), [([], 2), (["--batch-size", 18], 1), (["--batch-size", 8], 2)])
def test_a_part_holds_the_batch_that_was_asked_for(own, parts, tmp_path):
    sizes = ["heldout_prompts=18", "train_prompts=2", "warmup_prompts=0"]
    task = ["--task", "countdown", *(a for size in sizes for a in ("--option", size))]
    with OpenAIServer(lambda path, body: "1") as server:
        evaluate(f"m=openai:{server.url}#x", *task, "--samples", 1, *own, "--output", tmp_path)
    assert len(list((tmp_path / "samples" / "countdown" / "m").glob("part-*"))) == parts


def test_a_batch_beyond_the_parts_asked_for_is_refused(finished_run, tmp_path, capsys):
    command = ["m", *TASK, "--samples", "2", "--batch-size", "7", "--problems-per-part", "3", "--output", str(tmp_path)]
    assert main(["evaluate", *command]) == 2
    assert "7 completions at once, but a part holds 6. Fix: raise --problems-per-part to 4" in capsys.readouterr().err


def test_a_data_set_of_ones_own_is_evaluated_whole_and_missing_verdicts_are_reported(tmp_path, capsys):
    rows = [{"question": f"{i} + {i}?", "answer": str(2 * i)} for i in range(1, 9)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "verdict.py").write_text(
        "def verdict(prompts, completions, answer, **columns):\n"
        "    return [None if c == '?' else float(c == a) for c, a in zip(completions, answer)]\n"
    )

    def unsure_of_16(path, body):
        doubled = 2 * int(body["messages"][-1]["content"].split()[0])
        return "?" if doubled == 16 else "5" if doubled == 4 else str(doubled)

    options = [
        f"verifier={tmp_path / 'verdict.py'}:verdict",
        "columns={prompt: question}",
        "prompt_template='{prompt}'",
    ]
    task = ["--task", "dataset", "--data", tmp_path / "sums.jsonl", *(a for o in options for a in ("--option", o))]
    with OpenAIServer(unsure_of_16) as server:
        evaluate(f"m=openai:{server.url}#x", *task, "--samples", 2, "--output", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "results.json").read_text())["summary"]["m"]["dataset"]
    # Eight problems: six right, one wrong, one without a verdict.
    assert (found["mean@2"]["value"], found["mean@2"]["n_prompts"]) == (pytest.approx(6 / 7), 7)
    assert (found["mean@2_low"]["value"], found["mean@2_high"]["value"]) == (6 / 8, 7 / 8)
    assert (found["undecided"]["value"], found["undecided"]["n_prompts"]) == (1 / 8, 8)
    table = capsys.readouterr().out
    assert "Undecided" in table and "Mean@2, low bound" in table


def test_a_verifier_file_names_the_modes_of_ones_own_data(tmp_path, capsys):
    rows = [{"question": f"{i}", "answer": str(2 * i)} for i in range(1, 5)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "verdict.py").write_text(
        "def verdict(prompts, completions, answer, **columns):\n"
        "    return [float(eval(c) == int(a)) for c, a in zip(completions, answer)]\n"
        "def mode(prompt, completion):\n"
        "    return 'sum' if '+' in completion else 'product'\n"
    )

    def two_ways(path, body):
        number, way = body["messages"][-1]["content"].split()[0], body["seed"] % 2
        return "0" if number == "4" else f"{number} + {number}" if way else f"2 * {number}"

    options = [
        f"verifier={tmp_path / 'verdict.py'}:verdict",
        "columns={prompt: question}",
        "prompt_template='{prompt}'",
    ]
    task = ["--task", "dataset", "--data", tmp_path / "sums.jsonl", *(a for o in options for a in ("--option", o))]
    with OpenAIServer(two_ways) as server:
        evaluate(f"m=openai:{server.url}#x", *task, "--samples", 6, "--output", tmp_path / "out")
    rows = read_rows(tmp_path / "out" / "samples" / "dataset" / "m", EvaluationRecord)
    assert {(r.correct, r.mode) for r in rows} == {(True, "sum"), (True, "product"), (False, None)}
    found = json.loads((tmp_path / "out" / "results.json").read_text())["summary"]["m"]["dataset"]
    by_prompt = {p: {r.mode for r in rows if r.prompt_id == p and r.mode} for p in {r.prompt_id for r in rows}}
    assert found["distinct_modes@6"]["value"] == sum(map(len, by_prompt.values())) / 4
    assert found["effective_modes"]["n_prompts"] == 4 and "coverage" not in found
    (tmp_path / "verdict.py").write_text((tmp_path / "verdict.py").read_text().replace("'sum'", "None"))
    with OpenAIServer(two_ways) as server:
        command = ["evaluate", f"m=openai:{server.url}#x", *task, "--samples", 6, "--output", tmp_path / "again"]
        assert main([str(a) for a in command]) == 2
    assert "mode returned None for the correct completion" in capsys.readouterr().err


def test_help_loads_nothing_heavy():
    for command in ("evaluate", "judge"):
        code = f"import sys\nfrom disa.cli.main import main\ntry:\n    main(['{command}', '--help'])\n"
        code += "except SystemExit:\n    print('torch' in sys.modules, 'pyarrow' in sys.modules)\n"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        assert f"usage: disa {command}" in done.stdout
        assert done.stdout.splitlines()[-1] == "False False"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no/such/folder/x", *TASK], "neither a folder, nor a hub id"),
        (["openai:localhost/v1", *TASK], "HOST:PORT"),
        (["m", "--output", "x"], "no task"),
        (["m", "--task", "nothing"], "choose one of countdown"),
        (["m", "--task", "countdown", "--option", "nmbers=3"], "unknown setting 'nmbers'"),
        (["m", "--task", "countdown", "--option", "numbers=99"], "numbers"),
        (["m", *TASK, "--ks", "1,x"], "whole numbers"),
        (["m", *TASK, "--ks", "9"], "at least as many samples"),
        (["m", *TASK, "--top-p", "0"], "greater than 0"),
        (["m", *TASK, "--temperature", "0"], "same completion"),
        (["a=m", "a=n", *TASK], "two models are called 'a'"),
        (["m", *TASK, "--task", "graph_coloring"], "two tasks"),
        (["m", *TASK, "--baseline", "z"], "no model is called 'z'"),
        (["m", *TASK, "--timeout", "0"], "greater than 0"),
        (["m", *TASK, "--split", "validation"], "has no prompts"),
    ],
)
def test_mistakes_are_named_in_one_line(arguments, said, tmp_path, capsys):
    assert main(["evaluate", *arguments, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error and "Fix:" in error and error.count("\n") == 1


def test_numbers_that_must_be_positive_are_refused_by_the_parser(capsys):
    for option in ("--limit", "--samples", "--attempts"):
        with pytest.raises(SystemExit, match="2"):
            main(["evaluate", "m", "--task", "countdown", "--output", "x", option, "0"])
        assert "invalid whole number from 1 on value: '0'" in capsys.readouterr().err


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(DisaError, match="without config.json"):
        ModelSpec.parse(str(tmp_path))


def test_models_are_named_by_the_last_part_of_where_they_are(reference_folder):
    assert ModelSpec.parse(str(reference_folder)) == ModelSpec("reference", "folder", str(reference_folder))
    assert ModelSpec.parse("org/some-model") == ModelSpec("some-model", "hub", "org/some-model")
    served = ModelSpec.parse("openai:http://h:1/v1#org/big model")
    assert (served.name, served.kind) == ("big-model", "endpoint")
    assert ModelSpec.parse("x=openai:http://h:1/v1#m").name == "x"
