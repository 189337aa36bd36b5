"""The report page. It depends on the records only, so equal records give equal bytes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from autotune.jobs.front import without_superseded
from autotune.jobs.records import FrontRecord, JobRecord, TrialKind, TrialRecord
from autotune.jobs.remarks import recovered_text, remarks
from autotune.jobs.spec import JobSpec
from autotune.markup import Html, html, join, table, tag
from autotune.metrics.catalog import METRICS, OVERLOADED_MS, decisive_ratio, percentiles_of
from autotune.reports.charts import front_chart, latency_chart
from search_spaces.choice import ActivationMode, choice_named
from workers.measurement import LatencySamples
from workers.timing.estimates import Figure

#: Activation mode -> its letter in the strip of layers.
_LETTERS = {ActivationMode.STATIC: "S", ActivationMode.DYNAMIC: "D", ActivationMode.NONE: ""}
_WHY = {
    "knee": "it is the knee of the front: it has the largest product of gains over the worst value of each objective, "
    "relative to the front's range",
    "fastest": "it has the lowest median latency of all maps that satisfy the constraints",
    "smallest": "it has the smallest weights of all maps that satisfy the constraints",
    "most-accurate": "it has the highest accuracy of all maps that satisfy the constraints",
}
_NOT_RECORDED = "not recorded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """Content of a report."""

    job: JobRecord
    trials: tuple[TrialRecord, ...]
    front: FrontRecord
    #: The picked trial, and how it was picked: a word of ``PICKS`` or a number.
    picked: TrialRecord
    how: str
    #: Raw latencies of the picked trial, per workload and batch size.
    latency: tuple[LatencySamples, ...]

    @property
    def counting(self) -> list[TrialRecord]:
        """Trials that are not superseded by a later measurement."""
        return without_superseded(self.trials)

    @property
    def full_precision(self) -> TrialRecord:
        """The last measurement of full precision."""
        return next(trial for trial in self.counting if trial.key == self.trials[0].key)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the job's objectives."""
        return self.job.spec.objectives


def build(review: Review) -> str:
    """Return the report as an HTML page."""
    job = review.job
    title = f"{job.name}: trial {review.picked.number}"
    style = resources.files("autotune.reports").joinpath("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", title),
        tag("style", Html(style)),
    )
    sections = (_top, _charts, _figures, _constraints, _map, _provenance)
    body = tag("body", tag("main", *(section(review) for section in sections)))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _top(review: Review) -> Html:
    job, picked = review.job, review.picked
    metric = decisive_ratio(review.objectives)
    ratio = picked.figures.get(metric.name)
    speed = f" It is {metric.text_with_unit(ratio.value)} as full precision." if ratio else ""
    final = picked.kind is TrialKind.FINAL
    held_out = "held_out_accuracy" in picked.figures
    also = " and on held-out data" if held_out else f"; {picked.message}" if picked.message else ""
    again = f" It was re-measured at the end of the search, with more passes{also}." if final else ""
    recovered = recovered_text(picked)
    origin = f" {recovered}" if recovered else ""
    why = f"Trial {picked.number} was picked because {_WHY.get(review.how, 'its number was given')}."
    verdict = "All constraints are satisfied." if picked.feasible else "It does not satisfy all constraints."
    return join(
        [
            tag("h1", job.name),
            tag("p", f"Quantization of {job.task}, job {job.id}, {len(review.trials)} trials", class_="soft"),
            tag("div", tag("p", f"{why}{speed}{again}{origin} {verdict}"), class_="verdict"),
            *(tag("p", remark, class_="soft") for remark in remarks(job, review.trials)),
        ]
    )


def _charts(review: Review) -> Html:
    front = review.front
    drawn = tag(
        "figure",
        front_chart(review.counting, front.members, review.picked.number, review.objectives),
        tag(
            "figcaption",
            f"Blue: the {len(front.members)} maps of the front. Orange: baselines. Grey: other maps. Ring: the picked "
            f"map. Hypervolume {front.hypervolume:.6g}.",
        ),
    )
    return join([tag("h2", "Front and latency"), tag("div", drawn, _latency(review), class_="charts")])


def _latency(review: Review) -> Html:
    if not review.latency:
        return tag("p", "No latencies were recorded for this map.", class_="soft")
    samples = review.latency[0]
    count = len(samples.candidate_ms)
    percents = [p for p, metric in percentiles_of(samples.workload).items() if count >= metric.min_repeats]
    caption = (
        f"Blue: {count} passes of the picked map at batch size {samples.batch_size}. Outline: interleaved passes of "
        "full precision. The last bar includes the slowest 1 %. Milliseconds are those of this series; the figures "
        "below are scaled to the whole job."
    )
    return tag("figure", latency_chart(samples, percents), tag("figcaption", caption))


def _figures(review: Review) -> Html:
    baseline = review.full_precision.figures
    names = [name for name in METRICS if name in review.picked.figures]
    rows = [
        (
            METRICS[name].title,
            _cell(name, review.picked.figures[name]),
            _cell(name, baseline.get(name)),
            _change(review, name),
        )
        for name in names
    ]
    note = tag("p", "Sampled figures are shown with their 95 % confidence intervals.", class_="soft")
    headings = ("", f"trial {review.picked.number}", "full precision", "difference")
    return join([tag("h2", "Figures"), table(headings, rows, numbers=True), note])


def _cell(name: str, figure: Figure | None) -> Html:
    if figure is None:
        return Html("")
    text = METRICS[name].text
    if figure.low is None and figure.high is None:
        return html(text(figure.value))
    low, high = ("open" if end is None else text(end) for end in METRICS[name].shown_order(figure.low, figure.high))
    return join([text(figure.value), tag("span", f"{low} to {high}", class_="interval")])


def _change(review: Review, name: str) -> str:
    before = review.full_precision.figures.get(name)
    if before is None or METRICS[name].is_relative:
        return ""
    if not 0.0 < abs(before.value) < OVERLOADED_MS:
        return ""
    return f"{100.0 * (review.picked.figures[name].value / before.value - 1.0):+.1f}\u00a0%"


def _constraints(review: Review) -> Html:
    constraints = review.job.spec.constraints.constraints()
    if not constraints:
        return Html("")
    rows = []
    for constraint in constraints:
        figure = review.picked.figures.get(constraint.metric)
        violation = review.picked.violations.get(constraint.metric)
        verdict = _NOT_RECORDED if violation is None else "holds" if violation <= 0.0 else "broken"
        rows.append(
            (
                METRICS[constraint.metric].title,
                f"{constraint.bound} {METRICS[constraint.metric].text(constraint.limit)}",
                _cell(constraint.metric, figure),
                tag("span", verdict, class_=verdict.replace(" ", "-")),
            )
        )
    return join([tag("h2", "Constraints"), table(("", "limit", "measured", ""), rows)])


def _map(review: Review) -> Html:
    choices = {name: choice_named(choice) for name, choice in review.picked.choices.items()}
    cells = [
        tag("li", _LETTERS[choice.activation], class_=choice.precision.value, title=f"{name}: {choice.name}")
        for name, choice in choices.items()
    ]
    precisions = dict.fromkeys(choice.precision for choice in choices.values())
    keys = [tag("span", tag("span", class_=f"key {p.value}"), p.value) for p in sorted(precisions)]
    legend = tag("p", "S: static, D: dynamic activations. ", *keys, class_="soft")
    rows = [(tag("code", name), choice.name, _range(review.job, name)) for name, choice in choices.items()]
    layers = tag(
        "details",
        tag("summary", f"All {len(rows)} layers by name"),
        table(("layer", "choice", "calibrated input range"), rows),
    )
    return join([tag("h2", "The map, in execution order"), tag("ol", *cells, class_="strip"), legend, layers])


def _range(job: JobRecord, layer: str) -> str:
    found = job.description.calibration.ranges.get(layer) if job.description else None
    return f"{found.low:.4g} to {found.high:.4g}" if found else ""


def _provenance(review: Review) -> Html:
    spec = review.job.spec
    job, picked = review.job, review.picked
    rows: dict[str, str] = {
        "Job": f"{job.id} of {job.owner}, submitted {job.created_at.isoformat()}",
        "Task": f"{job.task} {json.dumps(dict(spec.task.parameters), sort_keys=True)}",
        "Search": f"{spec.search.sampler}, seed {spec.search.seed}, {', '.join(spec.search.choices)}",
        "Trial": f"{picked.number}, measured {picked.finished_at.isoformat()}",
        "Map": f"key {picked.key}",
        **_calibration(job, spec),
        **_environment(picked.environment),
    }
    return join([tag("h2", "Provenance"), table((), ((name, tag("code", value)) for name, value in rows.items()))])


def _calibration(job: JobRecord, spec: JobSpec) -> dict[str, str]:
    if job.description is None:
        return {}
    calibration = job.description.calibration
    ranges = {name: [found.low, found.high] for name, found in calibration.ranges.items()}
    digest = hashlib.sha256(json.dumps(ranges, sort_keys=True).encode()).hexdigest()
    settings = spec.worker_setup().calibration
    more = {"smoothing": calibration.smoothing_seconds, "second moments": calibration.moments_seconds}
    how = f"{settings.observer}, corrected biases" if settings.bias_correction else settings.observer
    took = f", {calibration.seconds:.1f} s"
    took += "".join(f", {seconds:.1f} s for {what}" for what, seconds in more.items() if seconds)
    return {
        "Model": f"sha256 {job.description.fingerprint}",
        "Calibration": f"{how}, {calibration.samples} samples, ranges of {len(ranges)} layers{took}",
        "Calibration data": f"sha256 {digest} over the calibrated ranges",
    }


def _environment(environment: Mapping[str, object]) -> dict[str, str]:
    versions = environment.get("versions", {})
    assert isinstance(versions, Mapping)
    packages = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()) if name != "git")
    return {
        "Hardware": f"{environment.get('hardware', _NOT_RECORDED)}, {environment.get('threads', '?')} threads",
        "Backend": str(environment.get("backend", _NOT_RECORDED)),
        "Versions": packages or _NOT_RECORDED,
        "Git revision": str(versions.get("git", _NOT_RECORDED)),
    }
