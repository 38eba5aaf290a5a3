"""Know a video by the ending of its name."""

_CONTAINERS = """
    360 3g2 3gp 3gp2 3gpp 3gpp2 amv apng asf avi bik cine dav divx dv dif dvr-ms evo f4v flc fli flm flv gif gxf hdmov
    ifv imx insv ismv ivf ivr k3g kux lrv lvf lxf m1v m2p m2t m2ts m2v m4v mj2 mjpeg mjpg mk3d mkv mlv mod moflex mov
    movie mp2v mp4 mp4v mpe mpeg mpeg1 mpeg2 mpeg4 mpg mpg2 mpg4 mpv mpv2 mqv mts mtv mvi mxf mxg nsv nut nuv ogm ogv
    ogx pva qt r3d rm rmvb roq rv ser smk swf thp tod tp trp ts ty usm viv vivo vob vqa vro webm wm wmv wtv xmv xvid y4m
"""
_RAW_STREAMS = """
    264 265 266 av1 avc avs2 avs3 cavs dirac dnxhd dnxhr drc evc h261 h263 h264 h265 h266 h26l hevc obu vc1 vc2 vvc
"""
VIDEO_SUFFIXES = frozenset(f".{name}" for name in f"{_CONTAINERS} {_RAW_STREAMS}".split())
"""Endings of video files, in lower case: of the containers and raw streams that FFmpeg demuxes into frames. Left out:
those that are mostly something else (``.dat``, ``.ogg``, ``.webp``), and raw pixels, whose size no file tells."""

_ENDINGS = tuple(sorted(VIDEO_SUFFIXES))


def is_video_name(name: str) -> bool:
    """Return whether a file name ends in one of :data:`VIDEO_SUFFIXES`, in any case, and is not hidden."""
    return name.lower().endswith(_ENDINGS) and not name.startswith(".")
