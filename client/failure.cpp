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
      {Exit::kUsage, "The command line, an environment variable or a file named there is wrong."},
      {Exit::kUnreachable,
       "No answer, or not all of it: the server cannot be reached, is not trusted, or took too long."},
      {Exit::kNotFound, "The instance, forward or key does not exist, or is somebody else's."},
      {Exit::kNotAllowed, "No key, an unknown one, or one that may not do this."},
      {Exit::kBusy, "Not now: too many requests, no port left, or the daemon is going down. Try again."},
  });
  return kMeanings;
}

void throw_exception_from_error(const Failure& failure, const boost::source_location& where) {
  throw std::logic_error(std::string(where.file_name()) + ":" + std::to_string(where.line()) +
                         ": unexpected failure: " + failure.message);
}

}  // namespace portway
