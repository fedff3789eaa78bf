"""Models on the Hugging Face Hub: folders, and up- and downloads with a Hub that runs here."""

import base64
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import torch

import titn_lib
from titn_lib import TITNError
from titn_lib.models import hub

IMAGES = torch.rand(3, 1, 16, 16)


@pytest.fixture(scope="module")
def model():
    return titn_lib.load_model("titn_nano.digits")


class FakeHub(BaseHTTPRequestHandler):
    """As much of the Hub as `push_to_hub` and `from_pretrained` talk to; its files are kept in a dictionary."""

    files: dict[str, bytes]
    commits: list[list[str]]

    def log_message(self, *_):
        pass

    def reply(self, content: bytes, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        content = self.files.get(self.path.rsplit("/", 1)[-1])
        if "/resolve/" not in self.path or content is None:
            return self.reply(b"", 404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
        return self.reply(content, ETag='"one"', X_Repo_Commit="0" * 40)

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/validate-yaml":  # of the model card
            answer = {"errors": [], "warnings": []}
        elif self.path == "/api/repos/create":
            answer = {
                "url": f"{huggingface_hub.constants.ENDPOINT}/user/digits",
                "name": "user/digits",
                "id": "user/digits",
            }
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            sent = [line["value"] for line in lines if line["key"] == "file"]
            self.files.update({file["path"]: base64.b64decode(file["content"]) for file in sent})
            self.commits.append([file["path"] for file in sent])
            answer = {"success": True, "commitUrl": f"{huggingface_hub.constants.ENDPOINT}/c/1", "commitOid": "0" * 40}
        return self.reply(json.dumps(answer).encode(), Content_Type="application/json")


@pytest.fixture
def fake(monkeypatch, tmp_path):
    handler = type("Handler", (FakeHub,), {"files": {}, "commits": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address, known = f"http://127.0.0.1:{server.server_port}", huggingface_hub.constants
    monkeypatch.setattr(
        known, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(known, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    yield handler
    server.shutdown()
    server.server_close()


def test_a_folder_gives_the_same_model_back(model, tmp_path):
    hub.save_pretrained(model, tmp_path / "digits")
    again = hub.from_pretrained(tmp_path / "digits")
    assert torch.equal(again(IMAGES), model(IMAGES))
    assert again.preprocessing == model.preprocessing
    assert again.config == model.config
    assert not again.training
    assert sorted(file.name for file in (tmp_path / "digits").iterdir()) == [
        "README.md", "config.json", "model.safetensors"
    ]  # fmt: skip


def test_what_readers_find_in_the_folder(model, tmp_path):
    hub.save_pretrained(model, tmp_path, dtype=torch.float16, repo="user/digits")
    settings = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert settings["family"] == "titn"
    assert settings["config"]["depth"] == model.config.depth
    assert settings["preprocessing"]["classes"] == list(model.preprocessing.classes)
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    for text in (
        "16×16 with\n1 channel",
        "730,500 parameters",
        "trained on `digits`",
        'from_pretrained("user/digits")',
    ):
        assert text in card.text
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    hub.save_pretrained(model, tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"


def test_the_code_in_the_model_card_runs(model, tmp_path):
    from PIL import Image

    hub.save_pretrained(model, tmp_path, repo=str(tmp_path))
    code = (tmp_path / "README.md").read_text(encoding="utf-8").split("```python")[1].split("```")[0]
    Image.new("L", (20, 20), 128).save(tmp_path / "image.png")
    names: dict = {}
    exec(code.replace("image.png", str(tmp_path / "image.png")), names)
    assert names["logits"].shape == (1, 10)


def test_up_and_down(fake, model, tmp_path):
    address = hub.push_to_hub(model, "user/digits", token="hf_nobody")
    assert address.endswith("/c/1")
    assert [sorted(paths) for paths in fake.commits] == [["README.md", "config.json", "model.safetensors"]]
    again = hub.from_pretrained("user/digits", cache_dir=tmp_path, token="hf_nobody")
    assert torch.equal(again(IMAGES), model(IMAGES))
    assert again.preprocessing == model.preprocessing
    other = hub.from_pretrained("user/digits", cache_dir=tmp_path, image_size=32, num_classes=3)
    assert (other.config.image_size, other.config.num_classes) == ((32, 32), 3)


def test_a_model_card_on_the_hub_stays(fake, model):
    fake.files["README.md"] = b"mine"
    hub.push_to_hub(model, "user/digits", token="hf_nobody")
    assert fake.files["README.md"] == b"mine"
    assert sorted(fake.commits[0]) == ["config.json", "model.safetensors"]


def test_another_preprocessing_and_half_precision(model, tmp_path):
    mine = replace(model.preprocessing, data="mine")
    hub.save_pretrained(model, tmp_path, mine, torch.float16)
    assert hub.from_pretrained(tmp_path).preprocessing == mine
    assert "trained on `mine`" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_errors_are_one_sentence(fake, model, tmp_path, monkeypatch):
    with pytest.raises(TITNError, match=r"can't load user/none \(.*\): check the name, your connection") as caught:
        hub.from_pretrained("user/none", cache_dir=tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(TITNError, match="there is no weights file"):
        hub.from_pretrained(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(TITNError, match="needs one more package: pip install huggingface_hub"):
        hub.push_to_hub(model, "user/digits")
    hub.save_pretrained(model, tmp_path)
    assert hub.from_pretrained(tmp_path).config == model.config, "a folder needs no other package"
