"""What each kind of source of T5's weights offers for what the settings ask for, before any of it is read."""

from __future__ import annotations

from dataclasses import dataclass

from sd3deploy.deployment.host import Host
from sd3deploy.deployment.wanted import Wanted
from sd3deploy.encoders import source
from sd3deploy.encoders.outlook import Outlook, look
from sd3deploy.errors import EncoderError

__all__ = ["Offer", "offers"]


@dataclass(frozen=True)
class Offer:
    """chosen: whether it is the kind that is asked for. name: of the source that the kind leads to. outlook: what it is and what it costs;
    None where it can not be used, and problem says why, or where it is on the network and is not asked for.
    """

    kind: str
    chosen: bool
    name: str = ""
    outlook: Outlook | None = None
    problem: EncoderError | None = None


def offers(host: Host, wanted: Wanted, ask: bool = True) -> list[Offer]:
    """One for each kind of source. ask: whether the network is asked for the chosen one, and waited for; for others it never is. Called
    with no lock held.
    """
    return [_offer(host, kind, wanted, ask) for kind in source.KINDS]


def _offer(host: Host, kind: str, wanted: Wanted, ask: bool) -> Offer:
    facts, chosen, name = host.facts(), kind == wanted.weights, ""
    asked = chosen and ask
    named = {"Local file": wanted.file, "Repository": wanted.repository}.get(kind, kind)
    if not chosen and not named.strip():
        return Offer(kind, chosen)
    try:
        if not facts.model and kind in ("Automatic", "Model"):
            raise EncoderError("source.no-model")
        found = source.find(kind, facts, wanted.file, wanted.repository, wanted.keep)
        name = found.name
        return Offer(kind, chosen, name, look(found, facts, wanted.choice, host.device(), host.cache(), asked, wanted.keep))
    except EncoderError as error:
        unasked = error.id == "hub.offline" and not asked and not source.offline(facts)
        return Offer(kind, chosen, name, problem=None if unasked else error)
    except OSError as error:
        return Offer(kind, chosen, name, problem=EncoderError("encoder.unreadable", source=name, error=error))
