// The files of the page at /ui, from api/ui, embedded in the daemon by the build. Any thread.
#pragma once

#include <span>
#include <string_view>

namespace portway {

struct UiFile {
  std::string_view name;  // "index.html"
  std::string_view content_type;
  std::string_view body;
};

std::span<const UiFile> ui_files();

/// The Content-Security-Policy of every file: only its own scripts, styles and API, and no framing.
inline constexpr std::string_view kUiPolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

}  // namespace portway
