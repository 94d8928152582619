"""The benchmark: its baselines are what their papers say, its pictures those of ordinary painting, and what is done is not done again."""

import json
import math
from dataclasses import replace

import pytest
import torch
from test_command_line import cidm, refused  # noqa: F401

from cidm_ops.adapters import attach
from cidm_ops.bank.bank import Bank
from cidm_ops.benchmarks.quality import methods, protocol, suite
from cidm_ops.benchmarks.quality.asked import scene_of
from cidm_ops.benchmarks.quality.figures import Row, best_at, figures, means
from cidm_ops.benchmarks.quality.methods import METHODS, mixture
from cidm_ops.benchmarks.quality.page import page, table
from cidm_ops.benchmarks.quality.painter import paint_mixtures
from cidm_ops.benchmarks.quality.protocol import Bench
from cidm_ops.benchmarks.quality.suite import doodle_suite, doodle_task
from cidm_ops.doodle.concepts import CONCEPTS
from cidm_ops.doodle.style import Style
from cidm_ops.engines.diffusers import load
from cidm_ops.engines.towers import load_tower
from cidm_ops.evaluation.protocol import SampleSettings
from cidm_ops.lowrank import LowRank
from cidm_ops.measure.scores import alignments, embed_all, matching
from cidm_ops.method.continual import ElasticWeights, SelfRegularised, name_factors
from cidm_ops.models.sd import DOODLE
from cidm_ops.painting.compose import AggregationConfig, ParsedPrompt, encode
from cidm_ops.painting.config import EVERYWHERE, SCOPES
from cidm_ops.painting.paint import SamplingConfig, paint, unit_noise
from cidm_ops.painting.sampling import sample
from cidm_ops.painting.scope import acting_at, limit_to_scope, scope_of, token_masks
from cidm_ops.training.captions import TEMPLATES
from cidm_ops.training.method import Task
from cidm_ops.training.methods import baselines
from cidm_ops.training.methods.baselines import DistilledLora, ElasticLora, SelfRegularizedLora, SequentialLora
from cidm_ops.training.trainer import Trainer

SAMPLING = SampleSettings(128, 2, 2.0)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """The Fisher information of a few pictures, where figures take 64."""
    monkeypatch.setattr(baselines, "FISHER_DRAWS", 4)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Three of Doodle's tasks, learned for two steps each."""
    suite = doodle_suite(load("doodle"), load_tower("doodle"), tasks=3, steps=1)
    quick = suite.recipe.update(steps=2)
    return Bench(tmp_path_factory.mktemp("bench"), replace(suite, recipe=quick, infusion=suite.infusion.update(steps=2)))


@pytest.fixture(scope="module")
def learned(bench):
    return bench.learn("corrected", 0)


def factors(seed, layers=("a", "b")):
    draw = torch.Generator().manual_seed(seed)
    return {n: LowRank(torch.randn(6, 2, generator=draw), torch.randn(2, 5, generator=draw)) for n in layers}


class TestTerms:
    def test_ewc_is_the_sum_of_squares_weighed_by_the_fisher_information_of_every_task(self):
        tasks, now, want = [], name_factors(factors(9)), 0.0
        for seed in (1, 2):
            at = name_factors(factors(seed))
            fisher = {n: torch.rand(p.shape, generator=torch.Generator().manual_seed(seed)) for n, p in at.items()}
            tasks.append({f"fisher.{n}": f for n, f in fisher.items()} | {f"at.{n}": p for n, p in at.items()})
            want += sum(float((fisher[n] * (now[n] - at[n]).square()).sum()) / 2 for n in at)
        assert float(ElasticWeights(tasks).loss(factors(9))) == pytest.approx(want, rel=1e-5)
        assert float(ElasticWeights(tasks[:1]).loss(factors(1))) == pytest.approx(0, abs=1e-4)
        assert float(ElasticWeights([]).loss(factors(1))) == 0

    def test_c_lora_weighs_a_change_by_what_earlier_ones_changed(self):
        earlier, now = [factors(1), factors(2)], factors(3)
        want = sum(float(((earlier[0][n].delta() + earlier[1][n].delta()).abs() * now[n].delta()).square().sum()) for n in now)
        assert float(SelfRegularised(earlier).loss(now)) == pytest.approx(want, rel=1e-5)
        assert float(SelfRegularised([]).loss(now)) == 0


class TestRuns:
    def begun(self, bench, learned, method, name=""):
        lesson = bench.suite.lessons[2]
        config = bench.suite.recipe.update(mode="off", kind=lesson.kind, templates=TEMPLATES[lesson.kind])
        task = Task(name=name or lesson.name, class_word=lesson.class_word, config=config)
        return Trainer(bench.suite.backbone, lesson.data(False), task, method=method, earlier=list(learned.values())[:2])

    def test_one_lora_goes_on_from_the_task_before(self, bench, learned):
        run = self.begun(bench, learned, SequentialLora())
        before = list(learned.values())[1].factors
        assert all(torch.equal(f.up, before[n].up) and torch.equal(f.down, before[n].down) for n, f in run.learner.factors().items())

    def test_lwf_asks_for_nothing_until_something_has_changed(self, bench, learned):
        run = self.begun(bench, learned, DistilledLora())
        told = []
        loss = run.learner.loss
        run.learner.loss = lambda *a: told.append(loss(*a)) or told[-1]
        with run.attach():
            run.advance()
            run.advance()
        (_, first), (_, second) = told
        assert float(first) == 0 and float(second) > 0

    def test_c_lora_starts_from_the_base_and_all_earlier_changes(self, bench, learned):
        run, backbone = self.begun(bench, learned, SelfRegularizedLora()), bench.suite.backbone
        draw = torch.Generator().manual_seed(0)
        x, context = torch.randn(1, 16, 16, 16, generator=draw), torch.randn(1, 77, 160, generator=draw)
        with torch.no_grad():
            with run.attach():
                got = backbone.predict(x, torch.tensor([500]), context)
            earlier = list(learned.values())[:2]
            with attach(backbone.layers, earlier[0].factors), attach(backbone.layers, earlier[1].factors):
                want = backbone.predict(x, torch.tensor([500]), context)
            base = backbone.predict(x, torch.tensor([500]), context)
        assert (got - want).abs().max() < 1e-5 < (got - base).abs().max()

    def test_ewc_measures_what_its_pictures_pull_at(self, bench, learned, tmp_path):
        for concept in list(learned.values())[:2]:
            run = self.begun(bench, {}, ElasticLora(tmp_path), concept.name)
            with run.attach():
                run.advance()
                run.method.finish(run)
        run = self.begun(bench, learned, ElasticLora(tmp_path))
        assert len(run.learner.regularizer.stiffness) == 2 * len(run.learner.names) and all(
            (f >= 0).all() for f in run.learner.regularizer.stiffness.values()
        )
        assert max(float(f.max()) for f in run.learner.regularizer.stiffness.values()) > 0


def style_of(concept):
    """The same, learned as a style."""
    return replace(concept, training={"kind": "style"})


def lora_of(concept):
    """Its factors without its words, as a LoRA has them."""
    return replace(concept, words=(), tokens={}, token_layers=())


def acting(backbone, text, concepts, scope):
    """Where on a text concepts act, ``[N, G]``."""
    masks = token_masks(backbone, text, concepts)
    return acting_at(masks, concepts, scope, len(next(iter(masks.values()))))


class TestPainting:
    def test_a_batch_of_mixtures_is_what_each_prompt_paints_alone(self, bench, learned):
        backbone, noise = bench.suite.backbone, unit_noise(DOODLE, 3, 2, 128, 128)
        bank = Bank(bench.folder / "banks/corrected-0")
        prompts = ["a <dog> on the beach", "a <dog> in the snow next to a red cup"]
        got = paint_mixtures(backbone, [mixture("exact", backbone, learned, "dog", p) for p in prompts], noise, SAMPLING)
        for i, prompt in enumerate(prompts):
            want = paint(backbone, bank, prompt, noise[i : i + 1], SamplingConfig(2, 2.0))[0]
            assert (got[i] - want[0]).abs().max() < 1e-3
        soft = paint_mixtures(backbone, [mixture("soft", backbone, learned, "dog", prompts[0])], noise[:1], SAMPLING)
        assert (
            soft - paint(backbone, bank, prompts[0], noise[:1], SamplingConfig(2, 2.0, aggregation=AggregationConfig(mode="soft")))[0]
        ).abs().max() < 1e-3

    def test_concepts_act_where_they_are_named(self, bench, learned):
        backbone, noise, dog = bench.suite.backbone, unit_noise(DOODLE, 3, 1, 128, 128), learned["dog"]
        mixed = mixture("exact", backbone, learned, "dog", "a <dog> next to a red cup")
        at = {reach: acting(backbone, mixed.text, [dog], reach)[:, 0].nonzero().flatten().tolist() for reach in SCOPES}
        whole = [*range(77)]
        assert at == {"by kind": whole, "everywhere": whole, "words and end": [2, 3, *range(9, 77)], "words": [2, 3]}
        assert [scope_of(c) for c in (dog, style_of(dog), lora_of(style_of(dog)))] == ["everywhere", "words", "everywhere"]
        assert acting(backbone, "a <dog.1> <dog.2>, a <dog.1> <dog.2>", [dog, learned["duck"]], "words").sum(0).tolist() == [4, 0]
        assert acting(backbone, "", [dog], "words and end").sum() == 0 and acting(backbone, "a cat", [lora_of(dog)], "words").sum() == 77
        with pytest.raises(ValueError, match="reach 'nowhere': expected one of by kind, everywhere"):
            acting(backbone, "", [dog], "nowhere")

        here = torch.stack([acting(backbone, text, [dog], "words") for text in (mixed.text, "")])
        (bare,) = limit_to_scope([dog], "words")
        assert len(bare.factors) == 0.75 * len(dog.factors) and not any(DOODLE.looks_at_text(n) for n in bare.factors)
        deltas = {n: (lambda x, f=f: f(x) * here) if DOODLE.reads_text(n) else f for n, f in bare.factors.items()}
        with attach(backbone.layers, deltas), torch.no_grad():
            want = sample(backbone, encode(backbone, mixed), encode(backbone, ParsedPrompt("")), noise, steps=2, guidance=2.0)
        for got in (
            paint_mixtures(backbone, [mixed], noise, SAMPLING, reach="words"),
            paint_mixtures(backbone, [replace(mixed, concepts=[style_of(dog)])], noise, SAMPLING),
        ):
            assert (got - backbone.decode_latent(want)).abs().max() < 1e-4

    def test_texts_of_different_length_paint_alike(self, bench, learned):
        backbone, noise, bank = bench.suite.backbone, unit_noise(DOODLE, 3, 1, 128, 128), Bank(bench.folder / "banks/corrected-0")
        how = AggregationConfig(scope="words and end")
        configs = [SamplingConfig(2, negative=negative, aggregation=how) for negative in ("", "a cat, " * 40)]
        same, longer = (paint(backbone, bank, "a <dog>", noise, config)[0] for config in configs)
        assert same.isfinite().all() and longer.isfinite().all() and (same - longer).abs().max() > 1e-3
        assert (same - paint(backbone, bank, "a <dog>", noise, SamplingConfig(2))[0]).abs().max() > 1e-3

    def test_merges_weigh_as_they_say(self, bench, learned):
        backbone = bench.suite.backbone
        weights = {m: mixture(m, backbone, learned, "duck", "a <duck>", 0.5).weights[0].tolist() for m in ("uniform", "sum", "last")}
        assert weights == {"uniform": [pytest.approx(1 / 6)] * 3, "sum": [0.5] * 3, "last": [0, 0, 0.5]}
        assert mixture("last", backbone, learned, "duck", "a <duck>").text == "a <duck.1> <duck.2>"
        with pytest.raises(ValueError, match="'mean': expected one of"):
            mixture("mean", backbone, learned, "duck", "a <duck>")

    def test_a_composite_is_the_mean_of_what_each_predicts(self, bench, learned):
        backbone, noise = bench.suite.backbone, unit_noise(DOODLE, 3, 1, 128, 128)
        mixed = mixture("composite", backbone, learned, "dog", "a <dog>")
        one = {"dog": learned["dog"]}
        alone = paint_mixtures(backbone, [mixture("composite", backbone, one, "dog", "a <dog>")], noise, SAMPLING, composite=True)
        assert (alone - paint_mixtures(backbone, [mixture("exact", backbone, one, "dog", "a <dog>")], noise, SAMPLING)).abs().max() < 1e-4
        got = paint_mixtures(backbone, [mixed], noise, SAMPLING, composite=True, reach=EVERYWHERE)

        def predict(x, t, text, pooled, chunks):
            outs = []
            for concept in learned.values():
                with attach(backbone.layers, concept.factors):
                    outs.append(backbone.predict(x, t, text, pooled))
            return torch.stack(outs).mean(0)

        texts = (encode(backbone, said) for said in (mixed, ParsedPrompt("")))
        latents = sample(backbone, *texts, noise, steps=2, guidance=2.0, predict=predict)
        assert (got - backbone.decode_latent(latents)).abs().max() < 1e-4


class TestAsked:
    def test_a_prompt_is_the_scene_that_it_names(self):
        dog, ink = CONCEPTS["dog"], CONCEPTS["ink"]
        scene = scene_of("a blue house on the left and a <TOK> on the right in the snow", dog, 0)
        assert [t.look.kind for t in scene.things] == ["house", "dog"] and scene.things[1].look == dog.look and scene.place == "snow"
        alone = scene_of("a <TOK> on the street", dog, 1)
        assert len(alone.things) == 1 and alone.place == "street" and alone.style == Style(), "there is a tree in the word street"
        assert scene_of("a <TOK> on the left", dog, 2).things[0].x < 44 and scene_of("a drawing of a <TOK>", dog, 3).style.name == "drawing"
        assert scene_of("an <TOK> of a red cup next to a duck", ink, 4).style == ink.style
        with pytest.raises(ValueError, match="asks for nothing of the Doodle world"):
            scene_of("a <TOK> at night", ink, 5)

    def test_every_prompt_of_the_suite_can_be_drawn(self):
        for concept in (CONCEPTS["cat"], CONCEPTS["drawing"]):
            lesson = doodle_task(concept)
            assert len(lesson.prompts) == 20
            assert all(lesson.drawn(prompt, i).shape == (3, 128, 128) for i, prompt in enumerate(lesson.prompts))


class TestFigures:
    def test_the_best_at_a_text_alignment_is_read_off_the_curve(self):
        curve = [(0.5, 1.0, 0.2), (1.0, 0.8, 0.6), (1.5, 0.4, 0.7)]
        assert best_at(curve, 0.9) == pytest.approx(0.4) and best_at(curve, 0.8) == pytest.approx(0.6)
        assert best_at(curve, 0.0) == 0.7 and best_at(curve, 1.1) is None

    def test_figures_are_means_over_concepts_and_seeds(self):
        def row(ia, ta, curve=()):
            return Row(METHODS["cidm"], ia, ta, [0.0] * len(ia), {}, [sum(ia) / len(ia)], curve, [v / 0.8 for v in ia])

        rows = {
            "base": row([0.1, 0.3], [1.0, 1.2]),
            "alone": row([0.6, 0.8], [1.0, 1.0]),
            "finetune": row([0.2, 0.4], [1.0, 1.1], [(1.0, 1.05, 0.3)]),
            "cidm": row([0.6, 0.7], [1.0, 1.1], [(0.5, 1.1, 0.4), (1.0, 1.05, 0.65)]),
        }
        found = figures(rows)
        assert found["cidm_ia"] == pytest.approx(0.65) and found["cidm_ia_less_alone"] == pytest.approx(-0.05)
        assert found["cidm_ta_less_base"] == pytest.approx(-0.05) and found["cidm_ahead_of_finetune_at_equal_ta"] == pytest.approx(0.35)
        assert found["cidm_ia_low"] <= found["cidm_ia"] <= found["cidm_ia_high"] and found["cidm_ims"] == pytest.approx(
            0.65 / 0.8, abs=1e-4
        )

    def test_identity_matching_is_that_of_the_pictures_themselves(self, bench):
        """It is made of image alignments that were kept, so it is compared with the embeddings of the same pictures."""
        seen = embed_all(bench.suite.tower, bench.suite.lessons[0].references)
        other = embed_all(bench.suite.tower, bench.suite.lessons[1].references)
        ia, length = alignments(other, seen), bench.suite.mean_lengths[bench.suite.lessons[0].name]
        assert torch.allclose(ia / length, matching(other, seen), atol=1e-6)

    def test_without_a_text_side_there_is_no_text_alignment(self, bench, tmp_path):
        nothing = float("nan")
        ia, ta = means({"dog": {"ia": [0.5, 0.7]}})["dog"]
        assert ia == pytest.approx(0.6) and math.isnan(ta)
        rows = {"cidm": Row(METHODS["cidm"], [0.6], [nothing], [0.0], {"dog": (0.6, nothing)}, [0.6], [(1.0, nothing, 0.6)], [0.71])}
        found = figures(rows)
        assert "cidm_ta" not in found and found["cidm_ia"] == pytest.approx(0.6)
        one = replace(bench.suite, lessons=bench.suite.lessons[:1])
        lines = table(rows, one).splitlines()
        assert "-" in lines[1].split() and "0.0" not in lines[-1] and lines[-1].split()[-1] == "71.0"
        page(tmp_path, rows, one, {**found, "seeds": [0]})
        assert not (tmp_path / "ta.png").exists() and (tmp_path / "ia.png").exists()


class TestTheWhole:
    def test_it_is_learned_and_scored_once(self, cidm, tmp_path, monkeypatch):  # noqa: F811
        monkeypatch.setattr(suite, "THINGS", suite.THINGS[::20])
        argv = [
            "benchmark",
            "--folder",
            tmp_path / "run",
            "--tasks",
            2,
            "--seeds",
            0,
            "--steps",
            1,
            "--set",
            "steps=2",
            "--infusion",
            "steps=2",
            "--json",
        ]
        argv += [tmp_path / "found.json", "--methods", "base", "alone", "ewc", "lora_c", "cidm", "infusion", "--note", "Two steps."]
        code, out, _ = cidm(*argv)
        assert code == 0 and "IA" in out[0] and sum("CIDM corrected, exact" in line for line in out) == 4 and "Two steps." in out
        found = json.loads((tmp_path / "found.json").read_text())
        assert found["cidm_forgetting"] == 0 and found["infusion_forgetting"] == 0 and "ewc_forgetting" in found
        page = (tmp_path / "run/report.html").read_text()
        assert page.count("data:image/png;base64,") >= 10 and "http" not in page.split("</style>")[1]
        monkeypatch.setattr(protocol, "paint_mixtures", None)
        monkeypatch.setattr(protocol, "paint", None)
        code, again, _ = cidm(*argv)
        assert code == 0 and again == out
        assert "sampling" in refused(cidm(*[2 if a == 1 else a for a in argv]))
        assert "'dreambooth'" in refused(cidm("benchmark", "--methods", "dreambooth"))

    def test_a_folder_of_photos_that_is_none_is_refused(self, cidm, tmp_path):  # noqa: F811
        assert "CIFC" in refused(cidm("benchmark", "--suite", tmp_path, "--folder", tmp_path / "run"))
        assert "TRAINING=NUMBER" in refused(cidm("benchmark", "--weight", "adam=1"))

    def test_every_method_has_a_training_and_a_merge(self):
        for method in (METHODS | methods.ABLATIONS).values():
            assert method.training in methods.TRAININGS and method.merge in methods.MERGES
