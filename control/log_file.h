// The files of the access log and of the audit log.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"
#include "base/fd.h"

namespace portway {

/// Appends to the file, which is made with mode 0640 if it is missing. A FIFO without a reader is refused at
/// once; open(2) would wait for one. kInvalidConfig about the configuration's `key`, with the remedy.
Result<Fd> open_log_file(std::string_view key, const std::string& path);

}  // namespace portway
