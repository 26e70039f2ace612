"""Which stream is the video, and files that hold more of it than is decoded."""

from pathlib import Path

import pytest

from tests.helpers import make_video, run_ffmpeg
from tests.videos import H264, decode
from vidcache.cache.format import Status
from vidcache.preprocess.analysis.facts import facts_of_folder

# --- which stream -----------------------------------------------------------------------------


def source(size: str, num_frames: int) -> tuple[str, ...]:
    return ("-f", "lavfi", "-i", f"testsrc2=s={size}:r=25:d={num_frames / 25}")


def mux(path: Path, *streams: tuple[str, int, str], options: tuple[str, ...] = ()) -> Path:
    """One file of several video streams: size, frames, coarseness."""
    inputs = [word for size, num_frames, _ in streams for word in source(size, num_frames)]
    maps = [word for number in range(len(streams)) for word in ("-map", str(number))]
    rates = [word for number, (*_, coarse) in enumerate(streams) for word in (f"-q:v:{number}", coarse)]
    run_ffmpeg(*inputs, *maps, "-c:v", "mpeg4", *rates, *options, str(path))
    return path


BIG_PICTURE, VIDEO, COARSE = ("320x240", 1, "1"), ("64x48", 30, "1"), ("96x64", 30, "31")


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi", "v.ts"])
@pytest.mark.parametrize("first", [True, False])
def test_a_single_picture_is_not_the_video(tmp_path: Path, name: str, first: bool) -> None:
    path = mux(tmp_path / name, *((BIG_PICTURE, VIDEO) if first else (VIDEO, BIG_PICTURE)))

    decoded = decode(path)

    assert (30, 64, "") == (decoded.stats.num_frames, decoded.probe.width, decoded.damage)


@pytest.mark.parametrize(
    ("name", "dispositions", "width"),
    [
        ("v.mp4", ("default", "default"), 64),  # the higher bit rate, not the larger picture
        ("v.mp4", ("0", "default"), 96),
        ("v.mp4", ("default", "0"), 64),
        ("v.mp4", ("visual_impaired+default", "default"), 96),
        ("v.mkv", ("hearing_impaired", "0"), 96),
    ],
)
def test_the_stream_is_chosen_as_libavformat_does(
    tmp_path: Path, name: str, dispositions: tuple[str, str], width: int
) -> None:
    options = ("-disposition:v:0", dispositions[0], "-disposition:v:1", dispositions[1])
    path = mux(tmp_path / name, VIDEO, COARSE, options=options)

    assert width == decode(path).probe.width


# --- files that go on -------------------------------------------------------------------------

# How each of two recordings is rendered, and whether ffmpeg reads both where one was appended to the other.
JOINED: dict[str, tuple[tuple[str, ...], bool]] = {
    "v.mp4": (H264, False),
    "front.mp4": ((*H264, "-movflags", "+faststart"), False),
    "v.flv": (H264, False),
    "v.wmv": (("-c:v", "wmv2"), False),
    "v.mkv": (H264, True),
    "v.ts": (H264, True),
    "v.avi": (("-c:v", "mpeg4"), True),
    "v.mpg": (("-c:v", "mpeg2video"), True),
}


@pytest.mark.parametrize("name", JOINED)
def test_joined_files_are_whole_or_damaged(tmp_path: Path, name: str) -> None:
    codec, are_both_read = JOINED[name]
    first = make_video(tmp_path / f"1{name}", 20, step=2, codec=codec)
    second = make_video(tmp_path / f"2{name}", 20, step=2, first=100, codec=codec)
    assert "" == decode(first).damage
    path = tmp_path / name
    path.write_bytes(first.read_bytes() + second.read_bytes())

    decoded = decode(path)

    size = path.stat().st_size
    if are_both_read:
        assert (40, "") == (decoded.stats.num_frames, decoded.damage)
        assert decoded.clip[-1].mean() > 100
        return
    assert decoded.damage.startswith("missing_frames: 20 decoded; another file begins at byte ")
    at = int(decoded.damage.split("byte ")[1].split(" of ")[0].replace(",", ""))
    assert first.stat().st_size <= at < size
    assert decoded.damage.endswith(f" of {size:,}, which ffmpeg does not read")


def transport(path: Path, first: int, pid: int, seconds: int, *options: str) -> bytes:
    """A part of a transport stream."""
    make_video(path, 20, first=first, step=2, codec=(*H264, "-streamid", f"0:{pid}", *options, "-f", "mpegts"))
    if seconds:
        run_ffmpeg(
            *("-i", str(path), "-c", "copy", "-streamid", f"0:{pid}", "-output_ts_offset", str(seconds)), f"{path}.ts"
        )
        return Path(f"{path}.ts").read_bytes()
    return path.read_bytes()


@pytest.mark.parametrize("pids", [(256, 512), (512, 256, 512)])
@pytest.mark.parametrize("continues", [True, False])
@pytest.mark.parametrize("program", [(), ("-mpegts_service_id", "2")])
def test_a_transport_stream_whose_numbers_change_is_damaged(
    tmp_path: Path, pids: tuple[int, ...], continues: bool, program: tuple[str, ...]
) -> None:
    parts = [
        transport(tmp_path / str(n), 60 * n, pid, n if continues else 0, *(program if n % 2 else ()))
        for n, pid in enumerate(pids)
    ]
    path = tmp_path / "v.ts"
    path.write_bytes(b"".join(parts))

    decoded = decode(path)

    assert decoded.stats.num_frames < 20 * len(pids)
    assert "another video stream, of " in decoded.damage
    assert decoded.damage.endswith("packets, has its turn before or after this one")


@pytest.mark.slow
def test_a_stream_that_begins_too_late_to_be_known_is_damage(tmp_path: Path) -> None:
    """ffprobe looks at the beginning and at the end: the second part lies between."""
    noise = "color=s=320x240:r=25,noise=alls=100:allf=t,format=yuv420p"

    def part(pid: int, num_frames: int) -> bytes:
        codec = ("-c:v", "mpeg2video", "-q:v", "1", "-streamid", f"0:{pid}", "-f", "mpegts")
        run_ffmpeg("-f", "lavfi", "-i", noise, "-frames:v", str(num_frames), *codec, str(tmp_path / "part"))
        return (tmp_path / "part").read_bytes()

    first = part(256, 150)
    assert len(first) > 6e6
    (tmp_path / "v.ts").write_bytes(first + part(512, 20) + first)

    decoded = decode(tmp_path / "v.ts")

    assert 300 == decoded.stats.num_frames
    assert decoded.damage.startswith("decode_error: 0 packets refused, ")
    assert "New video stream with index 1 at pos:" in decoded.damage


def with_sound(path: Path, seconds: float, *codec: str) -> Path:
    """Pictures for 2 s, sound for so many."""
    sound = ("-f", "lavfi", "-i", f"sine=d={seconds}")
    run_ffmpeg(*source("64x48", 50), *sound, "-map", "0", "-map", "1", *codec, str(path))
    return path


SOUND: dict[str, tuple[str, ...]] = {
    "v.mp4": (*H264, "-c:a", "aac"),
    "v.mkv": (*H264, "-c:a", "aac"),
    "v.flv": (*H264, "-c:a", "aac"),
    "v.ts": (*H264, "-c:a", "aac"),
    "v.avi": ("-c:v", "mpeg4", "-c:a", "mp2"),
    "v.wmv": ("-c:v", "wmv2", "-c:a", "wmav2"),
}


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("seconds", [0.5, 2.5, 5])
def test_only_sound_that_is_much_longer_means_damage(tmp_path: Path, name: str, seconds: float) -> None:
    decoded = decode(with_sound(tmp_path / name, seconds, *SOUND[name]))

    assert 50 == decoded.stats.num_frames
    assert decoded.damage.startswith("missing_frames: 50 decoded; it ") if seconds == 5 else decoded.damage == ""


def test_a_video_that_ends_before_the_length_that_its_file_names_is_damaged(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.flv", 40, codec=(*H264, "-g", "1"))
    data = path.read_bytes()
    tags, at = [], 13
    while at < len(data):
        tags.append(at)
        at += 11 + int.from_bytes(data[at + 1 : at + 4], "big") + 4
    path.write_bytes(data[: tags[22]])

    decoded = decode(path)

    n = decoded.stats.num_frames
    assert 15 < n < 25
    assert f"missing_frames: {n} decoded; it ends at {n / 25:.2f} s, the file at 1.60 s" == decoded.damage


def test_a_transport_stream_in_which_much_follows_is_damaged(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.ts", 20, codec=H264)
    data = path.read_bytes()
    path.write_bytes(data + (b"\x47\x1f\xff\x10" + bytes(184)) * 500)  # empty packets

    damage = decode(path).damage

    assert damage.startswith("missing_frames: 20 decoded; its last packet is at byte ")
    assert damage.endswith(f" of {path.stat().st_size:,}")


LONG_BOX = b"\0\0\0\1mdat" + (100_016).to_bytes(8, "big") + bytes(100_000)


@pytest.mark.parametrize("tail", [b"", LONG_BOX, bytes(50_000), b"\xff" * 50_000], ids=len)
def test_what_else_lies_in_an_mp4_is_no_damage(tmp_path: Path, tail: bytes) -> None:
    path = make_video(tmp_path / "v.mp4", 20, codec=H264)
    path.write_bytes(path.read_bytes() + tail)

    assert (20, "") == ((decoded := decode(path)).stats.num_frames, decoded.damage)


def test_fragments_slides_and_cuts_are_no_damage(tmp_path: Path) -> None:
    whole = with_sound(tmp_path / "whole.mp4", 2, *SOUND["v.mp4"])
    run_ffmpeg("-i", str(whole), "-c", "copy", "-movflags", "frag_keyframe+empty_moov", str(tmp_path / "fragments.mp4"))
    run_ffmpeg("-ss", "0.8", "-t", "0.5", "-i", str(whole), "-c", "copy", str(tmp_path / "cut.mp4"))
    slides = ("-vf", "select='not(mod(n,20))'", "-fps_mode", "vfr", *H264, "-c:a", "aac")
    for name in ("slides.mkv", "slides.mp4", "slides.ts"):
        run_ffmpeg(*source("64x48", 50), "-f", "lavfi", "-i", "sine=d=2", *slides, str(tmp_path / name))

    for name in ("fragments.mp4", "cut.mp4", "slides.mkv", "slides.mp4", "slides.ts"):
        assert "" == decode(tmp_path / name).damage, name


def test_analyze_of_a_folder_says_so_too(tmp_path: Path) -> None:
    for name in ("a", "b"):
        path = make_video(tmp_path / "raw" / name / "v.mp4", 20, codec=H264)
        if name == "b":
            path.write_bytes(path.read_bytes() * 2)

    facts = facts_of_folder(tmp_path / "raw")

    assert [Status.OK, Status.DAMAGED] == facts.status.tolist()
    assert facts.error[1].startswith(b"missing_frames: 20 in the stream; another file begins at byte ")
