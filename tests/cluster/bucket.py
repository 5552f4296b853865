"""A bucket that several processes see: what fsspec makes of one, over a folder, with every upload in a list."""

import hashlib
import io
import os
import time
from pathlib import Path

from fsspec.spec import AbstractFileSystem

ROOT, DELAY = "FEWSTEP_TEST_BUCKET", "FEWSTEP_TEST_BUCKET_DELAY"


class Upload(io.BytesIO):
    def __init__(self, target, autocommit):
        super().__init__()
        self._target, self._autocommit = target, autocommit

    def close(self):
        if not self.closed and self._autocommit:
            self.commit()
        if self._autocommit:
            super().close()

    def commit(self):
        time.sleep(float(os.environ.get(DELAY, "0")))
        content = self.getvalue()
        self._target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(os.environ[ROOT]) / f"upload-{os.getpid()}"
        draft.write_bytes(content)
        draft.replace(self._target)
        with (Path(os.environ[ROOT]) / "uploads.txt").open("a") as uploads:
            uploads.write(f"{os.getpid()} {self._target.name} {hashlib.sha256(content).hexdigest()}\n")
        super().close()

    def discard(self):
        super().close()


class BucketFileSystem(AbstractFileSystem):
    """Has no folders, no renaming and no locks; a file is there when its upload has ended."""

    protocol = "bucket"

    def _file(self, path):
        return Path(os.environ[ROOT]) / "objects" / self._strip_protocol(path)

    def info(self, path, **_):
        file = self._file(path)
        if not file.exists():
            raise FileNotFoundError(path)
        kind = "directory" if file.is_dir() else "file"
        return {"name": self._strip_protocol(path), "size": file.stat().st_size, "type": kind}

    def ls(self, path, detail=True, **_):
        if not self._file(path).is_dir():
            raise FileNotFoundError(path)
        base = self._strip_protocol(path)
        found = [self.info(f"{base}/{file.name}") for file in self._file(path).iterdir()]
        return found if detail else [each["name"] for each in found]

    def _open(self, path, mode="rb", autocommit=True, **_):
        return Upload(self._file(path), autocommit) if "w" in mode else self._file(path).open("rb")
