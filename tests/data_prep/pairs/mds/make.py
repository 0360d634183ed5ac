"""Writes the MDS folders beside this file with mosaicml-streaming, and what its own reader gives back; see README."""

import json
import shutil
from pathlib import Path

import numpy as np
from streaming import LocalDataset, MDSWriter

HERE = Path(__file__).parent
ROWS = [
    {
        "query": f"soalan {i}: apakah {'ikan ' * i}?",
        "pos": [f"jawapan {i}", f"jawapan lain {i} 中文"],
        "neg": [f"salah {i}-{j}" for j in range(i % 4)],
    }
    for i in range(7)
]
PAPER = {"query": "str", "pos": "json", "neg": "json"}
MIXED = {
    "a_text": "str", "b_int": "int", "c_u16": "uint16", "d_f32": "float32", "e_bytes": "bytes", "f_big": "str_int",
    "g_json": "json", "h_f64": "float64", "i_i8": "int8", "j_float": "str_float", "k_array": "ndarray:float32:2",
}  # fmt: skip


def mixed(i: int) -> dict:
    return {
        "a_text": "" if i == 1 else f"teks {i}", "b_int": -i, "c_u16": i * 9000, "d_f32": np.float32(i / 4),
        "e_bytes": bytes([65 + i] * i), "f_big": 10 ** (20 + i), "g_json": {"x": [i, None, "é"]}, "h_f64": i / 3,
        "i_i8": -i, "j_float": i / 7, "k_array": np.array([i, i], np.float32),
    }  # fmt: skip


def write(name: str, columns: dict, samples: list, **how: object) -> None:
    shutil.rmtree(HERE / name, ignore_errors=True)
    with MDSWriter(out=str(HERE / name), columns=columns, **how) as writer:
        for sample in samples:
            writer.write(sample)


def plain(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value.item() if isinstance(value, np.generic) else value


if __name__ == "__main__":
    write("plain", PAPER, ROWS, hashes=["sha1", "xxh64"], size_limit=550)
    write("zstd", PAPER, ROWS, hashes=["sha1", "xxh64"], compression="zstd:7", size_limit=550)
    write("gz", PAPER, ROWS[:3], hashes=["md5"], compression="gz:9")
    write("mixed", MIXED, [mixed(i) for i in range(4)], hashes=["sha1"])
    write("pickled", {"query": "str", "pos": "pkl"}, [{"query": "q", "pos": ["p"]}])
    back = list(LocalDataset(str(HERE / "plain")))
    assert back == ROWS
    (HERE / "rows.json").write_text(json.dumps(back, ensure_ascii=False, indent=1) + "\n")
    back = [{k: plain(v) for k, v in row.items() if k != "k_array"} for row in LocalDataset(str(HERE / "mixed"))]
    (HERE / "mixed.json").write_text(json.dumps(back, ensure_ascii=False, indent=1) + "\n")
