# Writes a file's bytes as a C++ source with the function NAME_object(), which network/bpf_object.h declares:
# cmake -DNAME=... -DINPUT=... -DOUTPUT=... -P embed.cmake
file(READ ${INPUT} bytes HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
# The loader reads the ELF structures where they stand, so the array is aligned for them.
file(WRITE ${OUTPUT} "#include \"network/bpf_object.h\"\n"
                     "namespace portway {\n"
                     "alignas(8) static constexpr unsigned char kBytes[] = {${bytes}};\n"
                     "std::span<const unsigned char> ${NAME}_object() { return kBytes; }\n"
                     "}  // namespace portway\n")
