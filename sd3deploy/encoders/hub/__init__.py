"""T5's weights in a repository of the Hugging Face hub, read by ranges over HTTP. Nothing of them is written to this disk.

spec.py         what a user writes: owner/name:path
repository.py   which files those are: what is on this disk already, or remote ones
downloads.py    what huggingface_hub keeps on this disk
remote.py       a remote file, as encoders/files.py has files
reader.py       reads of it: small ones page by page, what was announced ahead of time
pages.py        the small reads
stream.py       the blocks that are read ahead, over several connections
link.py         the requests for one file, each answer checked; what is broken goes on where it was
session.py      huggingface_hub's connections, its old and its new kind
patience.py     how often, and after what pause, something is tried again
failure.py      what went wrong, in one sentence with a remedy
waiting.py      waits that end on Cancel
"""

from sd3deploy.encoders.hub.downloads import downloaded
from sd3deploy.encoders.hub.remote import RemoteFile
from sd3deploy.encoders.hub.repository import Repository
from sd3deploy.encoders.hub.spec import Spec

__all__ = ["RemoteFile", "Repository", "Spec", "downloaded"]
