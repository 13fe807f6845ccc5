// The outcomes of a command: the exit codes that scripts rely on, and what is reported if it fails.
#pragma once

#include <boost/system/result.hpp>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace portway {

/// The process's exit code. Stable: documented in portway(1), which is generated from exit_meanings().
enum class Exit : std::uint8_t {
  kDone = 0,
  kRefused = 1,
  kUsage = 2,
  kUnreachable = 3,
  kNotFound = 4,
  kNotAllowed = 5,
  kBusy = 6,
};

struct ExitMeaning {
  Exit exit;
  std::string_view meaning;
};
std::span<const ExitMeaning> exit_meanings();

struct Failure {
  Exit exit = Exit::kRefused;
  std::string message;      // what happened
  std::string remedy = {};  // what to do about it
  // Of a server's refusal; empty if the failure is not the server's:
  std::string facts = {};    // "code: not_found, status: 404, request_id: ..."
  std::string problem = {};  // its problem document, in one line
};

/// "MESSAGE REMEDY (FACTS)", in one line whatever they contain, so that a log or a script takes it as one
/// report.
std::string in_one_line(const Failure& failure);

template <class T>
using Outcome = boost::system::result<T, Failure>;

/// Called by Outcome::value() on a failure that was not checked before, which is a bug in the client.
[[noreturn]] void throw_exception_from_error(const Failure& failure, const boost::source_location& where);

}  // namespace portway
