"""The runtime without threads, in memory of the caller: what WebAssembly and bare metal build."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

import kaoken
from bits import require_same_bits
from configurations import CONFIGURATIONS
from native_build import KAOKEN, call, configure, ninja
from oracles import bert

CMAKE = """
cmake_minimum_required(VERSION 3.24)
project(alone LANGUAGES C CXX)
find_package(Kaoken REQUIRED)
kaoken_add_model(first STATIC CHECKPOINT decoder DTYPE int8 ISA scalar)
kaoken_add_model(second STATIC CHECKPOINT encoder ISA scalar)
add_executable(alone alone.c)
target_link_libraries(alone PRIVATE first second)
"""

# Writes the logits of tokens 1, 2, 3 and the vectors of text 4, 5.
PROGRAM = r"""
#include <stdio.h>
#include <string.h>
#include "kaoken/kaoken.h"
KAOKEN_DECLARE_MODEL(first);
KAOKEN_DECLARE_MODEL(second);

_Alignas(64) static char arena[1 << 24];

static kaoken_session *open_session(const kaoken_model_api *api) {
  kaoken_session_options options = {.size = sizeof options, .batch = 1, .arena = arena};
  size_t bytes = 0;
  kaoken_session *session = NULL;
  memset(arena, 0xff, sizeof arena);
  if (api->session_size(&options, &bytes) || bytes > sizeof arena) return NULL;
  options.arena_bytes = bytes - 1;
  if (api->session_create(&options, &session) != KAOKEN_INVALID_ARGUMENT) return NULL;
  if (!strstr(api->last_error(), "arena_bytes")) return NULL;
  options.arena_bytes = bytes;
  options.arena = arena + 1;
  if (api->session_create(&options, &session) != KAOKEN_INVALID_ARGUMENT) return NULL;
  if (!strstr(api->last_error(), "aligned")) return NULL;
  options.arena = arena;
  if (api->session_create(&options, &session)) return NULL;
  for (size_t i = bytes; i < sizeof arena; ++i) {
    if (arena[i] != (char)0xff) return NULL;
  }
  return session;
}

int main(void) {
  static float outputs[1 << 16];
  const int64_t tokens[] = {1, 2, 3}, text[] = {4, 5}, length = 2;
  const kaoken_model_api *decoder = kaoken_model_first(), *encoder = kaoken_model_second();
  kaoken_session *session = open_session(decoder);
  if (!session || decoder->session_threads(session) != 1) return 1;
  if (decoder->session_append(session, tokens, 3, KAOKEN_LOGITS_ALL, outputs)) return 2;
  fwrite(outputs, sizeof(float), (size_t)(3 * decoder->info->vocab_size), stdout);
  decoder->session_destroy(session);
  session = open_session(encoder);
  const kaoken_texts texts = {.size = sizeof texts, .count = 1, .lengths = &length, .ids = text, .outputs = outputs};
  if (!session || encoder->session_encode(session, &texts)) return 3;
  fwrite(outputs, sizeof(float), (size_t)(2 * encoder->info->output_width), stdout);
  encoder->session_destroy(session);
  return 0;
}
"""


@pytest.mark.ci
def test_one_thread_and_an_arena_of_the_caller(tmp_path: Path) -> None:
    CONFIGURATIONS["plain"].write(tmp_path / "decoder")
    bert.write(tmp_path / "encoder", bert.config_of("plain"))
    (tmp_path / "CMakeLists.txt").write_text(CMAKE, encoding="utf-8")
    (tmp_path / "alone.c").write_text(PROGRAM, encoding="utf-8")
    build = tmp_path / "build"
    configure(tmp_path, build, Kaoken_DIR=KAOKEN / "cmake", KAOKEN_SINGLE_THREADED="ON")
    ninja(build)

    found = subprocess.run([build / "alone"], check=True, stdout=subprocess.PIPE).stdout
    values = np.array(struct.unpack(f"<{len(found) // 4}f", found), np.float32)
    decoder = kaoken.load(kaoken.bake(tmp_path / "decoder", dtype="int8", isa="scalar"))
    encoder = kaoken.load(kaoken.bake(tmp_path / "encoder", isa="scalar"))
    logits = decoder.logits([1, 2, 3])
    require_same_bits(values[: logits.size], logits.ravel())
    require_same_bits(values[logits.size :], encoder.hidden_states([4, 5])[0].ravel())

    headers = ninja(build, "-t", "deps")
    assert "kaoken/pass.h" in headers
    assert not re.findall(r"/(?:thread|mutex|condition_variable|atomic|sys/mman\.h)$", headers, re.MULTILINE)
    symbols = call("nm", "--undefined-only", build / "alone")
    assert not re.findall(r"\b(?:pthread_create|pthread_mutex_lock|pthread_cond_wait|mmap)\b", symbols)
