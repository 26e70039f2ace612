"""Decoding only what the samples need gives the frames of decoding everything, or is not done."""

import array
import dataclasses
import json
import math
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import TOOLS, run_ffmpeg
from tests.videos import SPEC, decode, probe
from vidcache.cache.reader import CacheReader
from vidcache.cli import main
from vidcache.preprocess.video import ffmpeg
from vidcache.preprocess.video import plan as planning
from vidcache.preprocess.video.decode import DecodedClip
from vidcache.preprocess.video.ffmpeg import OpenVideo, ProcessResult, SubprocessGroup
from vidcache.preprocess.video.plan import (
    DecodePlan,
    drop_expression,
    is_clean_cut,
    needed_packets,
    plan_decode,
    reorder_depth,
)
from vidcache.preprocess.video.probe import Timeline
from vidcache.spec import Spec, sample_indices

X264 = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-g", "12", "-keyint_min", "12")
X264_B = (*X264, "-sc_threshold", "0", "-bf", "3", "-x264-params", "b-pyramid=normal")
X265 = ("-c:v", "libx265", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", "12", "-x265-params")
REFS = (*X264[:4], "-pix_fmt", "yuv420p", "-bf", "4", "-g", "9999", "-x264-params")  # one key frame: nothing to seek
# Name: codec, whether much can be skipped. Anything else is decoded as a whole.
VIDEOS: dict[str, tuple[tuple[str, ...], bool]] = {
    "plain.mp4": ((*X264, "-bf", "0"), True),
    "b_frames.mp4": (X264_B, True),
    "b_frames.mkv": (X264_B, True),
    "b_frames.mov": (X264_B, True),
    "b_frames.ts": (X264_B, True),
    "b_frames.flv": (X264_B, True),
    "fragments.mp4": ((*X264_B, "-movflags", "frag_keyframe+empty_moov"), True),
    "parameters_in_band.mp4": ((*X264_B, "-tag:v", "avc3", "-bsf:v", "dump_extra"), True),
    "ten_bits.mkv": ((*X264_B, "-pix_fmt", "yuv420p10le"), True),
    "interlaced.mp4": ((*X264_B, "-flags", "+ildct+ilme"), True),
    "hevc.mp4": ((*X265, "open-gop=0:bframes=3:log-level=none:keyint=12:min-keyint=12:scenecut=0"), True),
    "hevc_parameters.mkv": ((*X265, "open-gop=0:repeat-headers=1:log-level=none:keyint=12:scenecut=0"), True),
    "parameters_in_all.mp4": ((*X264_B, "-tag:v", "avc3", "-bsf:v", "dump_extra=freq=all"), True),
    "open_gop.mp4": ((*X264, "-sc_threshold", "0", "-bf", "3", "-x264-params", "open-gop=1"), True),
    "hevc_open_gop.mp4": ((*X265, "open-gop=1:bframes=3:log-level=none:keyint=12:scenecut=0"), True),
    "b_frames_alone.mp4": ((*REFS, "b-pyramid=none:b-adapt=0"), True),
    "strict_pyramid.mkv": ((*REFS, "b-pyramid=strict:b-adapt=0"), True),
    "weighted.mp4": ((*REFS, "weightp=2:weightb=1:ref=6:b-adapt=0:direct=temporal"), True),
    "interlaced_alone.mp4": ((*REFS, "b-adapt=0:tff=1", "-flags", "+ildct+ilme"), True),
    "sliced.ts": ((*REFS, "slices=4:b-adapt=0:aud=1:nal-hrd=vbr:vbv-maxrate=900:vbv-bufsize=900"), True),
    "hevc_alone.mp4": ((*X265[:-3], "-g", "9999", "-x265-params", "bframes=4:b-adapt=0:log-level=none"), True),
    "hevc_weighted.mkv": (
        (*X265[:-3], "-g", "9999", "-x265-params", "weightb=1:ref=4:bframes=4:b-adapt=0:log-level=none"),
        True,
    ),
    "hevc_sub_layers.mp4": (
        (*X265[:-3], "-g", "9999", "-x265-params", "temporal-layers=3:bframes=4:b-adapt=0:log-level=none"),
        False,
    ),
    "intra_refresh.mp4": ((*X264, "-x264-params", "intra-refresh=1:bframes=0"), False),
    "one_key.mp4": (("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", "9999"), False),
    "mpeg4.mp4": (("-c:v", "mpeg4", "-g", "12", "-bf", "2"), False),
    "mpeg2.ts": (("-c:v", "mpeg2video", "-g", "12", "-bf", "2"), False),
    "vp9.webm": (("-c:v", "libvpx-vp9", "-g", "12", "-deadline", "realtime"), False),
    "annex_b.h264": (X264_B, False),  # no times in it
    "packed.avi": (X264_B, False),
}


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small videos are worth it too."""
    monkeypatch.setattr(planning, "SECONDS_PER_VIDEO", 0.0)
    monkeypatch.setattr(planning, "SECONDS_PER_PACKET", 0.0)


def render(path: Path, codec: tuple[str, ...], num_frames: int = 240, filters: str = "null") -> Path:
    """Detail that moves, so that a wrong reference shows."""
    source = f"testsrc2=s=96x72:r=25,noise=alls=20:allf=t,{filters}"
    run_ffmpeg("-f", "lavfi", "-i", source, "-frames:v", str(num_frames), "-fps_mode", "passthrough", *codec, str(path))
    return path


def both_ways(path: Path, spec: Spec = SPEC) -> tuple[DecodedClip, DecodedClip]:
    """The clip of everything, and the clip by key frames where that is allowed."""
    whole, by_keys = decode(path, spec, keyed=False), decode(path, spec)
    assert 0 == whole.stats.num_skipped
    assert (whole.clip == by_keys.clip).all()
    assert whole.num_real == by_keys.num_real
    assert whole.stats.num_frames == by_keys.stats.num_frames
    assert whole.damage == by_keys.damage
    return whole, by_keys


def plan_of(path: Path, **changes: Any) -> DecodePlan | None:
    """The plan of a video, with some things that ffprobe did not say."""
    with path.open("rb") as file, SubprocessGroup() as group:
        video = OpenVideo(file.fileno(), TOOLS, group, time.monotonic() + 60)
        return plan_decode(video, dataclasses.replace(probe(path), **changes), SPEC.num_frames)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "b_frames.mp4" else [pytest.mark.slow]) for name in VIDEOS]
)
def test_the_clip_is_that_of_a_whole_decode(name: str, tmp_path: Path) -> None:
    codec, enough = VIDEOS[name]
    whole, by_keys = both_ways(render(tmp_path / name, codec))

    assert 240 == whole.stats.num_frames
    assert len(np.unique(whole.clip.reshape(8, -1), axis=0)) == 8  # no frame stands for another
    # Behind the last sample there may be something to skip in any video.
    assert enough == (by_keys.stats.num_skipped > 60), by_keys.stats
    plan = plan_of(tmp_path / name)
    assert enough == bool(plan and plan.num_packets - plan.num_kept > 60)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["libx264", "libx265"])
def test_every_preset(encoder: str, tmp_path: Path) -> None:
    skipped = []
    for preset in ("superfast", "faster", "medium", "slower"):
        quiet = ("-x265-params", "log-level=none") if encoder == "libx265" else ()
        codec = ("-c:v", encoder, "-preset", preset, "-pix_fmt", "yuv420p", *quiet)
        skipped.append(both_ways(render(tmp_path / f"{preset}.mp4", codec))[1].stats.num_skipped)
    assert min(skipped) > 60, skipped


def test_a_lost_reference_is_missed_in_the_same_way(tmp_path: Path) -> None:
    """Gaps in `frame_num`: the decoder fills them, and nothing says so."""
    render(tmp_path / "whole.mp4", (*REFS, "b-adapt=0:b-pyramid=none:ref=4"))
    filters = ("-bsf:v", "noise=drop='eq(n,25)+eq(n,130)'")  # every fifth packet is a reference
    run_ffmpeg("-i", str(tmp_path / "whole.mp4"), "-c", "copy", *filters, str(tmp_path / "gaps.mp4"))

    whole, by_keys = both_ways(tmp_path / "gaps.mp4")

    assert 238 == whole.stats.num_frames
    assert by_keys.stats.num_skipped > 60


def test_times_that_make_no_sense_are_a_doubt(tmp_path: Path) -> None:
    path = render(tmp_path / "v.mp4", X264_B)
    known = probe(path)
    timeline = known.timeline
    assert timeline is not None
    assert 2 == known.reorder_depth_from_header

    def with_times(change: dict[int, int]) -> DecodePlan | None:
        times = array.array("q", timeline.pts)
        for at, value in change.items():
            times[at] = value
        return plan_of(path, timeline=Timeline(times, timeline.keys))

    plan = with_times({})
    assert plan is not None
    assert plan.num_kept < 120
    assert with_times({5: timeline.pts[6]}) is None  # the same time twice
    assert with_times({0: 1 << 40}) is None  # before everything, shown last
    assert with_times({40: 1 << 40}) is None
    late = array.array("q", timeline.pts)
    late[11] = 1 << 40  # the last of its group: shown after all others, though no one waits for it long
    plan = plan_of(path, timeline=Timeline(late, timeline.keys), reorder_depth_from_header=16)
    assert plan is None or plan.num_kept > 200
    assert plan_of(path, reorder_depth_from_header=1) is None  # the decoder would give frames too early
    assert plan_of(path, num_packets_in_file=241) is None
    assert plan_of(path, timeline=None) is None
    assert plan_of(path, codec="vp9") is None
    assert plan_of(path, width=0) is None  # nothing to save


@pytest.mark.slow
def test_any_group_length_and_any_clip_length(tmp_path: Path) -> None:
    rng, skipped = random.Random(0), []
    for number in range(10):
        group, between, num_frames = rng.randint(2, 40), rng.randint(0, 4), rng.randint(30, 200)
        flags = (
            f"open-gop={rng.randrange(2)}:b-pyramid={rng.choice(('none', 'strict', 'normal'))}:ref={rng.randint(1, 5)}"
        )
        codec = (*X264[:6], "-g", str(group), "-bf", str(between), "-x264-params", flags)
        path = render(tmp_path / f"{number}.mp4", codec, num_frames)

        whole, by_keys = both_ways(path, Spec(rng.randint(2, 20), 48, 64))

        assert num_frames == whole.stats.num_frames
        skipped.append(by_keys.stats.num_skipped)
    assert sum(count > 20 for count in skipped) >= 3  # the comparison is not one of a thing with itself


@pytest.mark.parametrize("start", ["0.5", "1.3"])
def test_an_edit_list_is_decoded_as_a_whole(tmp_path: Path, start: str) -> None:
    render(tmp_path / "whole.mp4", X264_B)
    run_ffmpeg("-ss", start, "-i", str(tmp_path / "whole.mp4"), "-c", "copy", str(tmp_path / "cut.mp4"))

    _, by_keys = both_ways(tmp_path / "cut.mp4")

    assert 0 == by_keys.stats.num_skipped


def test_parameters_that_change_are_decoded_as_a_whole(tmp_path: Path) -> None:
    parts = [
        render(tmp_path / f"{size}.ts", (*X264_B, "-s", size, "-output_ts_offset", offset))
        for size, offset in (("96x72", "0"), ("64x48", "10"))
    ]
    both = tmp_path / "both.ts"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))

    whole, by_keys = both_ways(both)

    assert (480, 0) == (whole.stats.num_frames, by_keys.stats.num_skipped)


def test_parameters_that_change_beside_the_stream_are_decoded_as_a_whole(tmp_path: Path) -> None:
    first, second = (
        render(tmp_path / f"{size}.flv", (*X264_B, "-s", size, "-output_ts_offset", offset)).read_bytes()
        for size, offset in (("96x72", "0"), ("64x48", "9.8"))
    )
    both = tmp_path / "both.flv"
    both.write_bytes(first + second[13:])  # without its file header: a second sequence header in mid-stream

    assert plan_of(tmp_path / "96x72.flv") is not None
    assert plan_of(both) is None
    both_ways(both)


def break_packet(path: Path, number: int) -> None:
    """Overwrite the slices of a packet, in decoding order."""
    command = [TOOLS.ffprobe, "-v", "error", "-show_entries", "packet=pos,size", "-of", "csv=p=0", str(path)]
    lines = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    size, position = (int(field) for field in lines[number].split(",")[:2])
    data = bytearray(path.read_bytes())
    for at in range(position + 12, position + size):
        data[at] = (at * 7919) % 251
    path.write_bytes(data)


def test_what_is_broken_among_the_needed_is_found(tmp_path: Path) -> None:
    path = render(tmp_path / "v.mp4", X264_B)
    break_packet(path, 0)

    by_keys = decode(path)

    assert by_keys.damage
    assert 0 == by_keys.stats.num_skipped


@pytest.mark.slow
def test_full_decode_finds_what_is_broken_elsewhere_too(tmp_path: Path) -> None:
    raw = tmp_path / "raw" / "a"
    raw.mkdir(parents=True)
    for number in range(3):
        render(raw / f"{number}.mp4", X264_B)
    break_packet(raw / "1.mp4", 36)  # no sample is between frames 34 and 68
    arguments = [str(tmp_path / "raw"), "--num-frames", "8", "--size", "16", "--json"]

    results = [
        CliRunner().invoke(main, ["build", arguments[0], str(tmp_path / f"{flag}.h5"), *arguments[1:], f"--{flag}"])
        for flag in ("keyframe-seek", "full-decode")
    ]

    assert [0, 0] == [result.exit_code for result in results], [result.stderr for result in results]
    assert [0, 1] == [json.loads(result.stdout)["num_damaged"] for result in results]
    with CacheReader(tmp_path / "keyframe-seek.h5") as by_keys, CacheReader(tmp_path / "full-decode.h5") as whole:
        assert [240] * 3 == by_keys.columns["num_frames"].tolist() == whole.columns["num_frames"].tolist()
        assert (by_keys.read([0, 2]) == whole.read([0, 2])).all()


def test_a_short_or_small_video_is_not_worth_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = render(tmp_path / "v.mp4", X264_B)
    _, by_keys = both_ways(path)
    assert by_keys.stats.num_skipped > 0

    monkeypatch.undo()

    _, by_keys = both_ways(path)
    assert 0 == by_keys.stats.num_skipped


@pytest.mark.slow
def test_what_noise_says_of_every_packet_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = render(tmp_path / "v.mp4", X264_B, 1200)
    break_packet(path, 168)  # the key frame before the sample 171
    ran: list[ProcessResult] = []
    run = SubprocessGroup.run
    monkeypatch.setattr(SubprocessGroup, "run", lambda *args, **kwargs: ran.append(run(*args, **kwargs)) or ran[-1])
    monkeypatch.setattr(ffmpeg, "TAIL_BYTES", 1 << 14)

    decode(path)

    probed, listed, by_keys, whole = (ended.stderr for ended in ran)
    assert "" == probed == listed
    assert "error" in by_keys
    assert "error" in whole
    assert "packet 1" not in by_keys


def test_a_clip_of_many_frames(tmp_path: Path) -> None:
    """ffmpeg's parser takes no hundred terms in a row."""
    path = render(tmp_path / "v.mp4", (*X264_B, "-b_strategy", "0"), 500)

    _, by_keys = both_ways(path, Spec(230, 16, 16))

    assert by_keys.stats.num_skipped > 60


def test_an_expression_that_is_too_long_for_an_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = render(tmp_path / "v.mp4", (*X264_B, "-b_strategy", "0"))
    plan = plan_of(path)
    assert plan is not None

    monkeypatch.setattr(planning, "MAX_EXPRESSION_CHARS", len(plan.drop) - 1)
    seeking = plan_of(path)
    assert seeking is not None
    assert plan.num_kept < seeking.num_kept < 240
    both_ways(path)

    monkeypatch.setattr(planning, "MAX_EXPRESSION_CHARS", 10)
    assert plan_of(path) is None


# --- arithmetic ----------------------------------------------------------------------------------


@st.composite
def timelines(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Groups of pictures of any length, each shuffled behind its first; and where groups start."""
    pts: list[int] = []
    starts: list[bool] = []
    for length in draw(st.lists(st.integers(1, 12), min_size=1, max_size=20)):
        inner = draw(st.permutations(range(1, length)))
        pts += [len(starts) * 10 + offset * 10 for offset in (0, *inner)]
        starts += [True] + [False] * (length - 1)
    return np.array(pts, np.int64), np.array(starts)


@given(timelines(), st.integers(1, 30), st.data())
def test_needed_is_what_is_referred_to_from_the_last_start_to_each_sample(
    timeline: tuple[np.ndarray, np.ndarray], num_frames: int, data: st.DataObject
) -> None:
    pts, starts = timeline
    unreferenced = np.array(data.draw(st.lists(st.booleans(), min_size=len(pts), max_size=len(pts)))) & ~starts
    samples = np.argsort(pts)[sample_indices(len(pts), num_frames)]
    expected = set(samples.tolist())
    for sample in samples.tolist():
        first = sample
        while not starts[first]:
            first -= 1
        expected |= {packet for packet in range(first, sample) if not unreferenced[packet]}

    assert expected == set(np.flatnonzero(needed_packets(samples, starts, unreferenced)).tolist())
    assert needed_packets(samples, np.zeros(len(pts), bool), unreferenced).all()


@given(st.lists(st.booleans(), min_size=1, max_size=400))
def test_the_expression_drops_what_is_not_needed(needed: list[bool]) -> None:
    names = {"lt": lambda a, b: a < b, "choose": lambda test, a, b: a if test else b, "floor": math.floor}
    names |= {"mod": math.fmod, "pow": lambda a, b: float(a) ** b}
    code = compile(drop_expression(np.array(needed)).replace("if(", "choose("), "expression", "eval")

    assert [not eval(code, {**names, "n": n}) for n in range(len(needed))] == needed


def test_ffmpeg_takes_the_longest_expression(tmp_path: Path) -> None:
    """As many packets as 20 minutes have, each different from the one before."""
    path = render(tmp_path / "v.mp4", X264)
    needed = np.arange(30_000) % 2 == 0
    keep = f"noise=drop='{drop_expression(needed)}'"

    run_ffmpeg("-i", str(path), "-c", "copy", "-bsf:v", keep, str(tmp_path / "half.mp4"))

    assert 120 == probe(tmp_path / "half.mp4").num_packets


@given(timelines())
def test_a_group_parts_the_video_in_two(timeline: tuple[np.ndarray, np.ndarray]) -> None:
    pts, starts = timeline
    naive = [(pts[:at] < pts[at]).all() and (pts[at + 1 :] > pts[at]).all() for at in range(len(pts))]

    assert naive == is_clean_cut(pts).tolist()
    assert is_clean_cut(pts)[starts].all()


@given(timelines())
def test_reorder_depth_is_the_delay_of_a_decoder(timeline: tuple[np.ndarray, np.ndarray]) -> None:
    pts, _ = timeline
    depth = reorder_depth(pts)

    def is_in_order(delay: int) -> bool:
        held: list[int] = []
        given: list[int] = []
        for when in pts.tolist():
            held = sorted([*held, when])
            if len(held) > delay:
                given.append(held.pop(0))
        return sorted(pts.tolist()) == given + held

    assert is_in_order(depth)
    assert depth == 0 or not is_in_order(depth - 1)
