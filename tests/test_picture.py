"""Pictures that are turned, mirrored or named in colours that ffmpeg refuses: the right ones come back."""

import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from tests.helpers import make_video, run_ffmpeg
from tests.videos import decode, failure_of, fake_tools
from vidcache import cli
from vidcache.cache.reader import CacheReader
from vidcache.preprocess.video.probe import Turn, turn_of
from vidcache.preprocess.video.source_file import Reason
from vidcache.spec import SCALING, TONEMAPPED, Spec

Clip = npt.NDArray[np.uint8]

FULL = Spec(20, 48, 64)
X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-qp", "10", "-g", "5", "-f", "h264")


# --- turned -----------------------------------------------------------------------------------

# Numbers a, b, c, d of a display matrix; what it does to (T, H, W, 3); the rotation that is kept.
TURNS: dict[str, tuple[tuple[int, int, int, int], Callable[[Clip], Clip], int]] = {
    "upright": ((1, 0, 0, 1), lambda clip: clip, 0),
    "90": ((0, 1, -1, 0), lambda clip: np.rot90(clip, -1, (1, 2)), 90),
    "180": ((-1, 0, 0, -1), lambda clip: np.rot90(clip, 2, (1, 2)), 180),
    "270": ((0, -1, 1, 0), lambda clip: np.rot90(clip, 1, (1, 2)), 270),
    "mirrored": ((-1, 0, 0, 1), lambda clip: clip[:, :, ::-1], 0),
    "upside down": ((1, 0, 0, -1), lambda clip: clip[:, ::-1], 0),
    "transposed": ((0, 1, 1, 0), lambda clip: clip.transpose(0, 2, 1, 3), 90),
    "transposed, 180": ((0, -1, -1, 0), lambda clip: np.rot90(clip.transpose(0, 2, 1, 3), 2, (1, 2)), 270),
}
SHAPES = {"plain": (160, 120, "yuv420p"), "large": (320, 240, "yuv420p"), "full": (162, 94, "yuv444p")}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same 10 pictures in several sizes and pixel formats, to be joined."""
    folder = tmp_path_factory.mktemp("parts")
    for name, (width, height, pixels) in SHAPES.items():
        source = ("-f", "lavfi", "-i", "testsrc2=s=160x120:r=25", "-frames:v", "10")
        run_ffmpeg(*source, "-vf", f"scale={width}:{height}", "-pix_fmt", pixels, *X264, str(folder / name))
    return {name: (folder / name).read_bytes() for name in SHAPES}


def join(path: Path, *parts: bytes, filters: str = "dump_extra=freq=k") -> Path:
    """An MP4 of one stream, whose parameters are in the stream."""
    stream = path.with_suffix(".h264")
    stream.write_bytes(b"".join(parts))
    run_ffmpeg(
        "-r", "25", "-f", "h264", "-i", str(stream), "-c", "copy", "-tag:v", "avc3", "-bsf:v", filters, str(path)
    )
    return path


def set_matrix(path: Path, *numbers: float) -> Path:
    """Write a display matrix into the header of an MP4's only track."""
    data = bytearray(path.read_bytes())
    start = data.rindex(b"tkhd") + 4 + 4 + 20 + 8 + 8
    assert (1 << 16, 1 << 30) == (
        struct.unpack_from(">i", data, start)[0],
        struct.unpack_from(">i", data, start + 32)[0],
    )
    a, b, c, d = (round(number * 65536) for number in numbers)
    struct.pack_into(">9i", data, start, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("change", ["plain large", "large plain", "plain full", "full plain"])
def test_a_turned_video_may_change_size_and_format(
    tmp_path: Path, parts: dict[str, bytes], turn: str, change: str
) -> None:
    numbers, turned, rotation = TURNS[turn]
    path = join(tmp_path / "v.mp4", *(parts[name] for name in change.split()))
    swapped = rotation % 180 == 90
    upright = decode(path, Spec(20, 64, 48) if swapped else Spec(20, 48, 64))

    decoded = decode(set_matrix(path, *numbers), FULL)

    assert np.array_equal(turned(upright.clip), decoded.clip)
    width, height, _ = SHAPES[change.split()[0]]
    size = (height, width) if swapped else (width, height)
    assert (*size, rotation) == (decoded.probe.width, decoded.probe.height, decoded.probe.rotation)
    assert (20, "") == (decoded.stats.num_frames, decoded.damage)


@pytest.mark.parametrize("turn", TURNS)
def test_a_turned_video_without_a_change_is_turned_before_it_is_scaled(
    tmp_path: Path, parts: dict[str, bytes], turn: str
) -> None:
    numbers, turned, rotation = TURNS[turn]
    path = join(tmp_path / "v.mp4", parts["plain"], parts["plain"])
    whole = decode(path, Spec(20, 120, 160)).clip  # not scaled

    clip = decode(set_matrix(path, *numbers), Spec(20, *((160, 120) if rotation % 180 else (120, 160)))).clip

    difference = np.abs(turned(whole).astype(int) - clip)
    assert difference.mean() < 2  # of colours, which have half the resolution
    assert (difference.mean(axis=(1, 2, 3)) < 3).all()


def test_a_video_that_says_itself_how_it_is_turned_may_change_size(tmp_path: Path, parts: dict[str, bytes]) -> None:
    orientation = "h264_metadata=display_orientation=insert:rotate=90"
    plain = (parts["plain"], parts["large"])
    upright = decode(join(tmp_path / "upright.mp4", *plain), Spec(20, 64, 48))

    decoded = decode(join(tmp_path / "v.mp4", *plain, filters=f"dump_extra=freq=k,{orientation}"), FULL)

    assert np.array_equal(np.rot90(upright.clip, 1, (1, 2)), decoded.clip)


@pytest.mark.parametrize("numbers", [(0, 0, 0, 0, 0), (1 << 16, 0, 0, 0, 0), (0, 0, 0, 0, 1 << 16)])
def test_a_matrix_without_an_angle_turns_nothing(numbers: tuple[int, ...]) -> None:
    assert Turn() == turn_of(numbers)


def test_a_matrix_is_a_quarter_only_within_half_a_degree() -> None:
    def turn(degrees: float) -> Turn:
        a, b = (round(65536 * part) for part in (math.cos(math.radians(degrees)), math.sin(math.radians(degrees))))
        return turn_of([a, b, 0, -b, a])

    assert [0, 90, 180, 270] == [turn(angle).degrees for angle in (0.4, 89.6, 180.4, 269.6)]
    for angle in (1, 45, 89, 91, 200):
        assert Turn(0, (("rotate", {"angle": f"{angle}*PI/180"}),)) == turn(angle)


# --- colours ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory, parts: dict[str, bytes]) -> Callable[[str], bytes]:
    """Name other colours in a stream; the pictures stay."""
    folder = tmp_path_factory.mktemp("tagged")
    (folder / "plain.h264").write_bytes(parts["plain"])

    def tag(words: str) -> bytes:
        source = ("-f", "h264", "-i", str(folder / "plain.h264"))
        run_ffmpeg(*source, "-c", "copy", "-bsf:v", f"h264_metadata={words}", "-f", "h264", str(folder / "v.h264"))
        return (folder / "v.h264").read_bytes()

    return tag


@pytest.mark.parametrize(
    ("words", "name", "like", "used"),
    [
        ("8", "ycgco", 1, "bt709"),
        ("10", "bt2020c", 9, "bt2020nc"),
        ("11", "smpte2085", 1, "bt709"),
        ("14", "ictcp", 1, "bt709"),
        ("14:colour_primaries=9", "ictcp", 9, "bt2020nc"),  # wide colours stay wide
    ],
)
def test_a_colour_matrix_that_ffmpeg_refuses(
    tmp_path: Path, tagged: Callable[[str], bytes], words: str, name: str, like: int, used: str
) -> None:
    expected = decode(join(tmp_path / "like.mp4", tagged(f"matrix_coefficients={like}")), FULL)

    decoded = decode(join(tmp_path / "v.mp4", tagged(f"matrix_coefficients={words}")), FULL)

    assert np.array_equal(expected.clip, decoded.clip)
    assert (10, "") == (expected.stats.num_frames, expected.damage)
    assert f"unsupported_colours: ffmpeg cannot convert {name}; read as {used}" == decoded.damage


@pytest.mark.parametrize("before", ["", "matrix_coefficients=1"])
def test_a_colour_matrix_that_ffmpeg_refuses_from_the_middle_on(
    tmp_path: Path, tagged: Callable[[str], bytes], before: str
) -> None:
    first = tagged(before or "matrix_coefficients=2")
    expected = decode(join(tmp_path / "like.mp4", first, first), FULL)

    decoded = decode(join(tmp_path / "v.mp4", first, tagged("matrix_coefficients=8")), FULL)

    assert (20, 20) == (decoded.stats.num_frames, decoded.num_real)
    assert np.array_equal(expected.clip, decoded.clip)


@pytest.mark.parametrize(
    "tag",
    [
        *(f"transfer_characteristics={number}" for number in (0, 16, 254)),
        *(f"colour_primaries={number}" for number in (0, 9, 254)),
        *(f"matrix_coefficients={number}" for number in (0, 3, 254)),
        "chroma_sample_loc_type=5",
        "matrix_coefficients=3:colour_primaries=3:transfer_characteristics=10",
    ],
)
def test_other_names_of_colours_change_no_pixel(
    tmp_path: Path, tagged: Callable[[str], bytes], parts: dict[str, bytes], tag: str
) -> None:
    expected = decode(join(tmp_path / "like.mp4", parts["plain"]), FULL)

    decoded = decode(join(tmp_path / "v.mp4", tagged(tag)), FULL)

    assert np.array_equal(expected.clip, decoded.clip)
    assert "" == decoded.damage


# --- HDR --------------------------------------------------------------------------------------

PQ, HLG = (f"transfer_characteristics={number}:colour_primaries=9:matrix_coefficients=9" for number in (16, 18))


def make_greys(path: Path, tag: str, *greys: int) -> Path:
    """A video of so many grey stripes, black to white, of HDR or not."""
    stripes = "+".join(f"{grey}*between(X,{16 * k},{16 * k + 15})" for k, grey in enumerate(greys))
    source = f"color=s={16 * len(greys)}x32:r=25,format=yuv420p,geq=lum='16+({stripes})*219/255':cb=128:cr=128"
    run_ffmpeg("-f", "lavfi", "-i", source, "-frames:v", "4", *X264, str(path.with_suffix(".h264")))
    return join(path, path.with_suffix(".h264").read_bytes(), filters=f"dump_extra=freq=k,h264_metadata={tag}")


def greys(clip: Clip, count: int) -> list[float]:
    """What the stripes have become."""
    width = clip.shape[2] // count
    assert np.ptp(clip, axis=3).max() <= 3  # still grey
    return [float(clip[:, :, k * width + width // 4 : k * width + 3 * width // 4].mean()) for k in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tag", "white", "middle"),
    [
        (PQ, 148, (90, 125)),  # PQ has white, 203 cd/m2, at 58 %, and 26 cd/m2 at 40 %: 13 % of white
        (HLG, 191, (100, 130)),  # HLG has it at 75 %, and 30 cd/m2 at 40 %: 15 %
    ],
)
def test_hdr_is_mapped_to_sdr_only_if_asked(tmp_path: Path, tag: str, white: int, middle: tuple[int, int]) -> None:
    path = make_greys(tmp_path / "v.mp4", tag, 0, 102, white, 255)
    shape = (4, 32, 64)

    plain = decode(path, Spec(*shape))
    mapped = decode(path, Spec(*shape, scaling=TONEMAPPED))

    assert [0, 102, white, 255] == pytest.approx(greys(plain.clip, 4), abs=2)
    black, dark, bright, brightest = greys(mapped.clip, 4)
    assert black < 12
    assert middle[0] < dark < middle[1]
    assert 235 < bright <= brightest <= 255
    assert "" == plain.damage == mapped.damage
    expected = ("smpte2084" if tag == PQ else "arib-std-b67", "bt2020", "bt2020nc")
    assert expected == (plain.probe.transfer, plain.probe.primaries, plain.probe.matrix)


def test_sdr_is_the_same_in_a_cache_that_maps_hdr(
    tmp_path: Path, tagged: Callable[[str], bytes], parts: dict[str, bytes]
) -> None:
    for number, part in enumerate((parts["plain"], tagged(PQ.replace("=16", "=14")))):
        path = join(tmp_path / f"{number}.mp4", part)
        plain = decode(path, FULL).clip
        assert np.array_equal(plain, decode(path, Spec(20, 48, 64, scaling=TONEMAPPED)).clip)


@pytest.mark.slow
def test_hdr_in_colours_that_ffmpeg_refuses_is_mapped_too(tmp_path: Path) -> None:
    path = make_greys(tmp_path / "v.mp4", PQ.replace("coefficients=9", "coefficients=14"), 0, 148)

    decoded = decode(path, Spec(4, 32, 32, scaling=TONEMAPPED))

    assert greys(decoded.clip, 2)[1] > 235
    assert "unsupported_colours: ffmpeg cannot convert ictcp; read as bt2020nc" == decoded.damage


def test_an_ffmpeg_that_cannot_map_hdr_says_so(tmp_path: Path) -> None:
    path = make_greys(tmp_path / "v.mp4", PQ, 0, 255)
    message = "[error] Error applying option 'out_transfer' to filter 'scale': Option not found"
    old = fake_tools(tmp_path / "bin", f'echo "{message}" >&2; exit 8')

    failure = failure_of(path, Spec(4, 32, 32, scaling=TONEMAPPED), [old])

    assert Reason.UNSUPPORTED_CODEC is failure.reason
    assert "cannot map HDR to SDR: install an ffmpeg that can" in failure.detail


@pytest.mark.slow
def test_a_build_keeps_what_the_colours_are_and_warns_of_hdr_once(tmp_path: Path) -> None:
    for number in range(6):
        make_video(tmp_path / "raw" / "ab"[number // 3] / f"{number}.mkv", 4, first=number * 9)
    make_greys(tmp_path / "hdr.mp4", HLG, 0, 148).rename(tmp_path / "raw" / "b" / "hdr.mp4")
    arguments = [str(tmp_path / "raw"), str(tmp_path / "c.h5"), "--num-frames", "4", "--size", "32", "--workers", "1"]
    note = "Note: 1 clip of HDR videos (PQ, HLG) look washed out. --tonemap maps them to SDR"

    plain = CliRunner().invoke(cli.main, ["build", *arguments])
    refused = CliRunner().invoke(cli.main, ["build", *arguments, "--tonemap"])
    with CacheReader(tmp_path / "c.h5") as reader:
        before, spec = reader.read([6]), reader.spec
        assert [*[b""] * 6, b"arib-std-b67"] == reader.columns["transfer"].tolist()
        assert [*[b""] * 6, b"bt2020"] == reader.columns["primaries"].tolist()
    mapped = CliRunner().invoke(cli.main, ["build", *arguments, "--tonemap", "--overwrite"])

    assert (0, 1) == (plain.exit_code, " ".join(plain.stderr.split()).count(note))
    assert 2 == refused.exit_code
    assert "'bicubic+accurate_rnd+full_chroma_int+bitexact+tonemap'" in " ".join(refused.stderr.split())
    assert (0, 0) == (mapped.exit_code, mapped.stderr.count("HDR"))
    with CacheReader(tmp_path / "c.h5") as reader:
        assert (SCALING, TONEMAPPED) == (spec.scaling, reader.spec.scaling)
        assert not np.array_equal(before, reader.read([6]))
        assert reader.spec == Spec.from_dict(reader.spec.to_dict())  # as a checkpoint keeps it
