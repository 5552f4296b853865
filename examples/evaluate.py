"""Scores few-step models against their teacher's samplers, and prints what each pays and gets.

python examples/evaluate.py                       # the bundled model; three minutes on two cores
python examples/evaluate.py --models scenes-lcm runs/example-distill/model
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fewstep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["scenes-lcm"])
    parser.add_argument("--n", type=int, default=256, help="pictures in a row; at least 128")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--samplers", nargs="+", default=["ddim", "dpm++"], help="of the teacher, to compare with")
    parser.add_argument("--workers", type=int, default=0, help="processes that paint; 0 is one for each core")
    parser.add_argument("--out", type=Path, default=Path("runs/example-evaluation"))
    given = parser.parse_args()

    reports: list[fewstep.Report] = []
    for number, model in enumerate(given.models):
        config = fewstep.configure(
            "evaluate",
            model=model,
            n=given.n,
            n_unseen=0,
            n_repeated=0,
            steps=given.steps,
            samplers=given.samplers,
            workers=given.workers,
            # Of several guidance scales and spacings each sampler would be scored at its best.
            guidance_scale=[3],
            spacings=["trailing"],
            out=given.out / str(number),
            # The rows of the models before stand in the same table: prompts and noise are the same.
            beside=[report.folder for report in reports],
        )
        reports.append(fewstep.evaluate(config))

    last = reports[-1]
    teacher = next(row for row in last.rows if row["sampler"] == "teacher")
    print(f"\n{'model':<16}{'sampler':<10}{'calls':>6}{'right':>9}{'of the teacher':>16}")
    for row in last.rows:
        right, share = row["prompt_accuracy"], row["prompt_accuracy"] / max(teacher["prompt_accuracy"], 1e-9)
        name, sampler = str(row["model"])[:15], row["sampler"]
        print(f"{name:<16}{sampler:<10}{row['network_evaluations']:>6}{right:>9.1%}{share:>16.1%}")
    print(f"report: {last.page}")


if __name__ == "__main__":
    main()
