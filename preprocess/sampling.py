"""Saying to ffmpeg which frames to keep. Pure arithmetic on top of `vidcache.sampling`."""


def select_expression(num_video_frames: int, num_clip_frames: int) -> str:
    r"""Return the `select` expression that keeps the frames of `vidcache.sampling.sample_indices`.

    With frames numbered n = 0, 1, ..., the smallest i whose sample is not before n is
    `ceil(n * (T - 1) / (N - 1))`; n is kept when that sample is n itself. Products stay far below
    2**53, so the doubles of ffmpeg's evaluator are exact.

    Args:
        num_video_frames: Frames that the video is believed to have (N). >= 1.
        num_clip_frames: Frames wanted (T). >= 2.

    Returns:
        An expression in `n`, without ffmpeg's filter quoting. A video that turns out longer than
        N gives no more than T frames, so a wrong N can be seen but does no harm.
    """
    last, steps = num_video_frames - 1, num_clip_frames - 1
    if num_video_frames <= num_clip_frames:
        return f"lt(n,{num_clip_frames})"
    return f"lt(n,{num_video_frames})*eq(n,floor(ceil(n*{steps}/{last})*{last}/{steps}))"
