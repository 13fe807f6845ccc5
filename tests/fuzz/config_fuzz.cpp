// Any text as a configuration: it is accepted, or refused with an error that names the place and the
// remedy.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "config/config.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = portway::parse_config(text, "fuzz.toml");
  if (!config && (config.error().code != portway::ErrorCode::kInvalidConfig ||
                  config.error().detail.find("fuzz.toml") == std::string::npos)) {
    std::abort();
  }
  return 0;
}
