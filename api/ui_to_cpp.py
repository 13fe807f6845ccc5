"""Writes a C++ source with the files of api/ui in it.

    ui_to_cpp.py OUTPUT.cpp FILE...
"""
import os
import sys

TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}


def array(data):
    return ",\n".join(",".join(str(byte if byte < 128 else byte - 256) for byte in data[i:i + 32])
                      for i in range(0, len(data), 32))


arrays, entries = [], []
for i, path in enumerate(sys.argv[2:]):
    with open(path, "rb") as file:
        arrays.append(f"constexpr char kFile{i}[] = {{\n{array(file.read())}\n}};")
    name = os.path.basename(path)
    entries.append(f'    {{"{name}", "{TYPES[os.path.splitext(name)[1]]}", {{kFile{i}, sizeof kFile{i}}}}},')
with open(sys.argv[1], "w", encoding="utf-8") as out:
    out.write("// Made from api/ui by api/ui_to_cpp.py.\n#include \"api/ui.h\"\n\nnamespace portway {\nnamespace {\n"
              + "\n".join(arrays) + "\nconstexpr UiFile kFiles[] = {\n" + "\n".join(entries)
              + "\n};\n}  // namespace\n\nstd::span<const UiFile> ui_files() {\n  return kFiles;\n}\n\n}  // namespace portway\n")
