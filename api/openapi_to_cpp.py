"""Writes a C++ source with api/openapi.yaml in it, as JSON.

    openapi_to_cpp.py openapi.yaml OUTPUT.cpp

The bytes are an array, because compilers need not accept a string literal of that length.
"""
import json
import sys

import yaml

with open(sys.argv[1], encoding="utf-8") as file:
    document = yaml.safe_load(file)
text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
lines = [",".join(str(byte if byte < 128 else byte - 256) for byte in text[i:i + 32]) for i in range(0, len(text), 32)]
with open(sys.argv[2], "w", encoding="utf-8") as file:
    file.write(f"""// Made from api/openapi.yaml by api/openapi_to_cpp.py.
#include "api/openapi.h"

namespace portway {{
namespace {{
constexpr char kJson[] = {{
{",{}".format(chr(10)).join(lines)}
}};
}}  // namespace

std::string_view openapi_json() {{
  return {{kJson, sizeof kJson}};
}}

}}  // namespace portway
""")
