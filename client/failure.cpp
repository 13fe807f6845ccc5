#include "client/failure.h"

#include <array>
#include <stdexcept>

namespace portway {

std::span<const ExitMeaning> exit_meanings() {
  static constexpr auto kMeanings = std::to_array<ExitMeaning>({
      {Exit::kDone, "Done."},
      {Exit::kRefused,
       "The server refused the request, a check failed (doctor, forwards check, config check), or the "
       "output could not be written."},
      {Exit::kUsage, "The command line, an environment variable or a file that one of them names is wrong."},
      {Exit::kUnreachable,
       "No answer or an incomplete one: the server cannot be reached, is not trusted, or took too long."},
      {Exit::kNotFound, "The instance, forward, key or node does not exist or is owned by someone else."},
      {Exit::kNotAllowed, "No key was given, or it is unknown or not allowed to do this."},
      {Exit::kBusy,
       "Too many requests, no free port, the daemon is shutting down, or a gateway cannot reach the node. "
       "Try "
       "again later."},
  });
  return kMeanings;
}

std::string in_one_line(const Failure& failure) {
  std::string line = failure.message;
  if (!failure.remedy.empty()) line += " " + failure.remedy;
  if (!failure.facts.empty()) line += " (" + failure.facts + ")";
  std::string out;
  for (const char c : line) {
    const bool blank = c == ' ' || c == '\n' || c == '\r' || c == '\t';
    if (!blank) out += c;
    if (blank && !out.empty() && out.back() != ' ') out += ' ';
  }
  return out;
}

void throw_exception_from_error(const Failure& failure, const boost::source_location& where) {
  throw std::logic_error(std::string(where.file_name()) + ":" + std::to_string(where.line()) +
                         ": unexpected failure: " + failure.message);
}

}  // namespace portway
