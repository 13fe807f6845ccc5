// The files of the page at /ui, api/ui, carried inside the daemon. Made by the build. Any thread.
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

/// For every file: nothing but its own scripts, styles and API, and in nobody's frame.
inline constexpr std::string_view kUiPolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri "
    "'none'; form-action 'none'; frame-ancestors 'none'";

}  // namespace portway
