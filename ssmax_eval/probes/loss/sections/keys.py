"""The page's part on key tokens: a table for each text, length and judge."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .... import statistics
from ....report.context import Context
from ....report.section import Section, Table, records

WHAT = (
    "Key tokens gain more than 2 nats from what lies further back than the near context, and cost less than 2 with it (LongPPL). "
    "Intervals are 95% over documents."
)
ITSELF = (
    "* Each model chose its own tokens, among those that it predicts well: its key loss is too low, and models are not compared. "
    "--key-model REF lets one model choose for all."
)
JUDGE = (
    "* The judge chose among tokens that it predicts well, so its own key loss is too low beside the others'. "
    "A judge that is none of the models compared does not do that."
)


@dataclass(frozen=True)
class Keys:
    """What one judge's key tokens tell on one text at one length: statistics by series, and where the difference is from."""

    title: str
    judge: str
    baseline: str
    lines: pd.DataFrame
    compared: pd.DataFrame


class KeyTokens(Section[Keys]):
    """The loss on key tokens beside the plain loss and the context gain."""

    place = 61
    heading = "loss of key tokens"

    def numbers(self, rows: pd.DataFrame, context: Context) -> list[Keys]:
        out = []
        for _, part in statistics.tasks(rows, statistics.TEXT):
            baseline = context.baseline_of(part)
            found, compared = statistics.key_loss(part), statistics.compare_key_loss(part, baseline)
            gain = statistics.context_gain(part)
            beside = {
                "loss": statistics.mean_loss(part),
                "context_gain": gain[gain["position_end"] == gain["context_length"]],
            }
            for name, table in beside.items():
                own = {column: f"{name}_{column}" for column in ("low", "high")}
                table = table[["series", name, *own]].rename(columns=own)
                found = found.merge(table, on="series", how="left") if len(found) else found
            judges = found.groupby("key_judge")["key_judge_fingerprint"].nunique()
            for (near, judge, weights), each in found.groupby(statistics.JUDGED, sort=False, dropna=False):
                first = each.iloc[0]
                where = f"{statistics.where_of(first['text'])}, {int(first['context_length']):,} tokens"
                by = "each model itself" if judge == statistics.ITSELF else judge
                by += f" ({weights})" if judge != statistics.ITSELF and judges[judge] > 1 else ""
                title = f"loss of key tokens, nats, {where}, near context {near:,.0f}, judged by {by}"
                same = compared[(compared["key_context"] == near) & (compared["key_judge"] == judge)]
                if judge != statistics.ITSELF and not pd.isna(weights):
                    same = same[same["key_judge_fingerprint"] == weights]
                out.append(Keys(title, judge, baseline, each, same))
        return out

    def tables(self, found: Sequence[Keys]) -> Iterator[Table | str]:
        """Yield a table for each judge, a line for each series, and what has to be known of it."""
        for each in found:
            itself = each.judge == statistics.ITSELF
            difference = [] if itself else [f"minus {each.baseline}"]
            names = [
                "loss",
                "with far context minus without",
                "key loss",
                *difference,
                "key tokens a document",
                "share",
                "documents",
            ]
            beside = each.compared.set_index("series").to_dict("index")
            lines = []
            for line in each.lines.to_dict("records"):
                other = beside.get(line["series"])
                minus = [] if itself else ["" if other is None else told(other, "difference", "low", "high")]
                lines.append(
                    [
                        line["series"] + (" *" if line["judges"] else ""),
                        told(line, "loss", "loss_low", "loss_high"),
                        told(line, "context_gain", "context_gain_low", "context_gain_high"),
                        told(line, "key_loss", "low", "high"),
                        *minus,
                        told(line, "key_tokens", "key_tokens_low", "key_tokens_high", 1),
                        "–" if pd.isna(line["share"]) else f"{100 * line['share']:.2f}%",
                        f"{line['documents']}" + (f" ({line['failed']} failed)" if line["failed"] else ""),
                    ]
                )
            yield Table(each.title, ["series", *names], lines)
            yield " ".join([WHAT, *notes(each)])

    def summary(self, found: Sequence[Keys]) -> dict[str, Any]:
        return {
            "key_loss": records(each.lines for each in found),
            "key_loss_compared": records(each.compared for each in found),
        }


SECTION = KeyTokens()


def notes(found: Keys) -> list[str]:
    """Return what has to be said of a table: whose loss is too low, and which documents are not compared."""
    if found.judge == statistics.ITSELF:
        return [ITSELF]
    others = int(found.compared["others"].sum())
    apart = f"{others} documents, of which the judge chose other tokens in another run, are not compared."
    return ([JUDGE] if found.lines["judges"].any() else []) + ([apart] if others else [])


def told(line: Mapping[Any, Any], value: str, low: str, high: str, digits: int = 3) -> str:
    """Write a value with its interval."""
    if pd.isna(line[value]):
        return "–"
    interval = "" if pd.isna(line[low]) else f" ({line[low]:.{digits}f} to {line[high]:.{digits}f})"
    return f"{line[value]:.{digits}f}{interval}"
