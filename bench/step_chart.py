"""The benchmark as one SVG picture for the README: step times per case, each side a bar.

Built from the pages room's markup and scales; its charts draw points and curves and take their
colours from a page's style sheet, so the bars and a style of their own are here.
"""

from __future__ import annotations

from typing import Any

from step_cases import PENCHANT, SIZES, TRL_BEST, TRL_DEFAULT, Case, all_cases

from penchant.pages.axes import Scale
from penchant.pages.markup import Markup, tag

WIDTH, LEFT, RIGHT = 760, 110, 190
BAR, STEP, HEADING, GAP, TOP = 13, 18, 20, 14, 44
NAMES = {PENCHANT: "Penchant", TRL_BEST: "TRL, best", TRL_DEFAULT: "TRL, default"}
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; font-size: 14px; }
.case { font-weight: 600; }
.quiet { fill: #59636e; }
.ours { fill: #1a7f6b; }
.best { fill: #8c959f; }
.default { fill: #c9d1d9; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .quiet { fill: #9198a1; }
  .ours { fill: #3fb99b; }
  .best { fill: #7d8590; }
  .default { fill: #484f58; }
}
"""
CLASSES = {PENCHANT: "ours", TRL_BEST: "best", TRL_DEFAULT: "default"}


def chart(cases: dict[str, Any]) -> Markup:
    """Bars are step times in units of TRL best's, so that every case has the same scale.

    Cases without both Penchant and TRL's best settings are left out.
    """
    known = all_cases()
    shown = {
        name: entry["summary"]["contestants"]
        for name, entry in cases.items()
        if {PENCHANT, TRL_BEST} <= set(entry["summary"].get("contestants", {}))
    }
    longest = max((one["seconds"] for one in _relative(shown)), default=1.0)
    scale = Scale(0.0, longest, LEFT, WIDTH - RIGHT)
    parts: list[Markup] = [
        tag("style", STYLE),
        tag("text", "A training step: Penchant against TRL", x=8, y=20, class_="title"),
        tag(
            "text",
            "time in units of TRL's best settings; shorter is better",
            x=WIDTH - 8,
            y=20,
            class_="quiet",
            text_anchor="end",
        ),
    ]
    top = TOP
    for name, sides in shown.items():
        count = len(cases[name]["conditions"]["asked"]["lengths"])
        parts.append(tag("text", _heading(name, known[name], count), x=8, y=top, class_="case"))
        top += HEADING - BAR
        for who in [who for who in NAMES if who in sides]:
            faster = cases[name]["summary"]["times_faster"][PENCHANT].get(who)
            parts += _bar(who, sides, faster, scale, top)
            top += STEP
        top += GAP + BAR
    return tag(
        "svg",
        parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {top}",
        width=WIDTH,
        height=top,
        role="img",
        aria_label=_words(shown),
    )


def _relative(shown: dict[str, Any]) -> list[dict[str, float]]:
    return [
        {"seconds": sides[who]["seconds"] / sides[TRL_BEST]["seconds"]}
        for sides in shown.values()
        for who in NAMES
        if who in sides
    ]


def _bar(
    who: str, sides: dict[str, Any], faster: float | None, scale: Scale, top: float
) -> list[Markup]:
    """A side's name, its bar, and what it stands for.

    Args:
        faster: how many times faster Penchant is, of the sittings that both were in.
    """
    one = sides[who]
    end = scale(one["seconds"] / sides[TRL_BEST]["seconds"])
    text = f"{one['seconds']:.3g} s"
    if one["memory_bytes"]:
        text += f", {one['memory_bytes'] / 2**30:.1f} GiB"
    if faster is not None:
        text += f"  ({faster:.1f}x)"
    name_class = "case" if who == PENCHANT else None
    return [
        tag("text", NAMES[who], x=LEFT - 8, y=top + 11, text_anchor="end", class_=name_class),
        tag(
            "rect",
            tag("title", f"{NAMES[who]}: {text}"),
            x=LEFT,
            y=top,
            width=max(1.0, end - LEFT),
            height=BAR,
            rx=2,
            class_=CLASSES[who],
        ),
        tag("text", text, x=end + 6, y=top + 11),
    ]


def _heading(name: str, case: Case, count: int) -> str:
    size = SIZES[case.size]
    kind = "bf16" if case.dtype == "bfloat16" else "fp32"
    adapter = f" LoRA r={case.lora}" if case.lora else ""
    batch = f"{count} prompt{'s' if count > 1 else ''} x {case.responses} responses"
    if case.fixed:
        batch += f" at {case.cap:,} tokens"
    body = f"{size.body / 1e6:,.0f}M body, {size.vocabulary:,} vocabulary"
    return f"{name}: {body}, {kind}{adapter}, {batch}"


def _words(shown: dict[str, Any]) -> str:
    """The picture for those who do not see it."""
    parts = [
        f"{name}: "
        + ", ".join(f"{NAMES[who]} {sides[who]['seconds']:.3g} s" for who in NAMES if who in sides)
        for name, sides in shown.items()
    ]
    return "Step times. " + "; ".join(parts)
