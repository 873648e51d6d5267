"""Rules about the machine: network, disk, rights."""

from __future__ import annotations

from sd3deploy.diagnosis.rule import Advice, Rule

__all__ = ["RULES"]

_HUB = r"hugging ?face|\bhf\.co|hf-mirror|xethub|diffusers|transformers"
# One try of several: what comes of it is said later.
_RETRY = r"thrown while requesting (?:HEAD|GET)|Retrying in \d"

RULES: tuple[Rule, ...] = (
    Rule(
        id="hub-offline",
        cause="network",
        match=r"outgoing traffic has been disabled|offline mode is enabled|OfflineModeIsEnabled",
        action="setting",
        source="https://github.com/huggingface/huggingface_hub/pull/1899",
    ),
    Rule(
        id="hub-certificate",
        cause="network",
        match=r"CERTIFICATE_VERIFY_FAILED",
        also=(_HUB,),
        unless=_RETRY,
        action="none",
        source="https://github.com/Stability-AI/stable-virtual-camera/issues/23",
    ),
    Rule(
        id="hub-proxy",
        cause="network",
        match=r"ProxyError|(?:Unable|Cannot) (?:to )?connect to proxy|Tunnel connection failed",
        also=(_HUB,),
        unless=_RETRY,
        action="restart",
        source="https://github.com/anapnoe/stable-diffusion-webui-ux/issues/211",
    ),
    Rule(
        id="hub-dns",
        cause="network",
        match=r"NameResolutionError|Failed to resolve '|getaddrinfo failed|Name or service not known|Temporary failure in name resolution"
        r"|nodename nor servname",
        also=(_HUB,),
        unless=_RETRY,
        action="none",
        source="https://github.com/huggingface/transformers/issues/12575",
    ),
    Rule(
        id="hub-too-many",
        cause="network",
        match=r"429 Client Error|\b429 Too Many Requests|Too Many Requests for url",
        also=(_HUB,),
        action="setting",
        source="https://github.com/huggingface/transformers/issues/21129",
    ),
    Rule(
        id="hub-down",
        cause="network",
        match=r"\b(?P<status>50[0234]) Server Error",
        also=(_HUB,),
        unless=_RETRY,
        action="none",
        source="https://github.com/huggingface/huggingface_hub/issues/2060",
    ),
    Rule(
        id="hub-xet",
        cause="network",
        match=r"CAS service error|hf_xet.{0,80}(?:error|failed)",
        action="setting",
        source="https://github.com/huggingface/huggingface_hub/issues/3036",
    ),
    Rule(
        id="download-broken",
        cause="network",
        match=r"Consistency check failed: file should be of size|IncompleteRead\(|ChunkedEncodingError"
        r"|peer closed connection without sending complete",
        action="none",
        source="https://github.com/huggingface/huggingface_hub/issues/1959",
    ),
    Rule(
        id="hub-timeout",
        cause="network",
        match=r"ConnectTimeout|ReadTimeout|Read timed out|Connection to \S+ timed out|handshake operation timed out",
        also=(_HUB,),
        unless=_RETRY,
        action="setting",
        source="https://github.com/lewandofskee/DiAD/issues/16",
    ),
    Rule(
        id="hub-unreachable",
        cause="network",
        match=r"couldn't connect to 'https?://\S+ to load|trying to locate the files? on the Hub and we cannot find"
        r"|Max retries exceeded with url|ConnectionError|Connection refused|Network is unreachable|Connection reset by peer"
        r"|WinError 100(?:51|54|60|61)|RemoteDisconnected",
        also=(_HUB,),
        unless=_RETRY,
        action="setting",
        source="https://github.com/vladmandic/sdnext/issues/3226",
    ),
    Rule(
        id="disk-full",
        cause="disk-full",
        match=r"No space left on device|(?:os error|WinError) 112\b|not enough space on the disk"
        r"|Not enough free disk space to download the file\. The expected file size is: (?P<needed>[\d.]+ MB)",
        action="none",
        source="https://github.com/huggingface/huggingface_hub/issues/2742",
        advise=lambda values, seen: Advice(sentence="rule.disk-full.needed") if values["needed"] else Advice(),
    ),
    Rule(
        id="disk-quota",
        cause="disk-full",
        match=r"Disk quota exceeded|\[Errno 122\]",
        action="none",
        source="https://github.com/ayaanzhaque/instruct-nerf2nerf/issues/86",
    ),
    Rule(
        id="read-only",
        cause="permission",
        match=r"Read-only file system(?:: ?'(?P<path>[^']+)')?",
        action="setting",
        source="https://github.com/Comfy-Org/ComfyUI/issues/5660",
        advise=lambda values, seen: Advice(values={"path": values["path"] or "that folder"}),
    ),
    Rule(
        id="path-too-long",
        cause="permission",
        match=r"\[WinError 206\]|\[Errno (?:36|63)\] File name too long",
        action="setting",
        source="https://github.com/Fannovel16/comfyui_controlnet_aux/issues/246",
    ),
    Rule(
        id="symlink-right",
        cause="permission",
        match=r"\[WinError 1314\]",
        action="restart",
        source="https://github.com/docling-project/docling/issues/961",
    ),
    Rule(
        id="file-in-use",
        cause="permission",
        match=r"\[WinError 32\]|\(os error 32\)",
        unless=r"site-packages[^:]{0,200}\.pyd|\.pyd'",
        action="restart",
        source="https://github.com/cocktailpeanut/fluxgym/issues/159",
    ),
    Rule(
        id="permission",
        cause="permission",
        match=r"(?:PermissionError: )?\[(?:Errno 13|WinError 5)\](?:[^:'\"]{0,80})(?:: ?['\"](?P<path>[^'\"]+)['\"])?",
        unless=r"\.pyd['\"]|\.dll['\"]|Could not install packages|attempting to bind",
        action="none",
        source="https://github.com/bmaltais/kohya_ss/issues/859",
        advise=lambda values, seen: Advice(values={"path": values["path"] or "a file of the model"}),
    ),
)
