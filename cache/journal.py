"""The journal of a build: which clips are completed, one fixed-size record each.

A record counts only when its checksum is right, so a torn tail is simply not there. The checksum
is seeded with the plan's identity: a record of another plan is no record.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from vidcache.cache.format import RECORD

_ENTRY = np.dtype([("row", "<u8"), ("record", RECORD)])
ENTRY_BYTES = _ENTRY.itemsize + 8


def encode_entry(plan_identity: str, row: int, record: np.void) -> bytes:
    """Return one journal entry, `ENTRY_BYTES` long.

    Args:
        plan_identity: Hex digest that names the plan.
        row: Row of the clip.
        record: Scalar of dtype `RECORD`.
    """
    entry = np.zeros((), _ENTRY)
    entry["row"], entry["record"] = row, record
    body = entry.tobytes()
    return body + _checksum(plan_identity, body).to_bytes(8, "little")


def decode_entries(
    plan_identity: str, num_clips: int, data: bytes
) -> tuple[np.ndarray[Any, Any], npt.NDArray[np.bool_], int]:
    """Read entries up to the first that is torn, altered or of another plan.

    Args:
        plan_identity: Hex digest that names the plan.
        num_clips: Rows of the cache; an entry for another row is refused.
        data: Content of the journal, whatever it is.

    Returns:
        Records, (N,) of dtype `RECORD` (the last entry of a row counts); (N,) bool, which rows have one;
        and how many bytes were good.
    """
    records, done = np.zeros(num_clips, RECORD), np.zeros(num_clips, bool)
    position = 0
    while position + ENTRY_BYTES <= len(data):
        body = data[position : position + _ENTRY.itemsize]
        checksum = int.from_bytes(data[position + _ENTRY.itemsize : position + ENTRY_BYTES], "little")
        if checksum != _checksum(plan_identity, body):
            break
        entry = np.frombuffer(body, _ENTRY, count=1)[0]
        if entry["row"] >= num_clips:
            break
        row = int(entry["row"])
        records[row], done[row] = entry["record"], True
        position += ENTRY_BYTES
    return records, done, position


def _checksum(plan_identity: str, body: bytes) -> int:
    return xxhash.xxh3_64_intdigest(body, seed=int(plan_identity[:16], 16))
