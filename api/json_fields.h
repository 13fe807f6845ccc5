// Reads the JSON body of a request strictly, field by field.
//
// Control thread.
#pragma once

#include <boost/json/object.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/http/message.h"
#include "base/endpoint.h"
#include "base/error.h"
#include "base/forward.h"

namespace portway {

/// Reads the fields of a JSON object: a request's body, or an element of a list. Remembers the first error; a
/// field that does not fit reads as an empty value. finish() rejects, by name, every field that was not read.
class JsonFields {
 public:
  explicit JsonFields(const Request& request);
  /// Errors put `path` before the names of fields, e.g. "port_forwards[2].".
  JsonFields(const boost::json::object& object, std::string path) : path_(std::move(path)), object_(object) {}

  std::string string(std::string_view name);  // required
  std::string string_or(std::string_view name, std::string_view fallback);
  std::optional<std::string> string_or_none(std::string_view name);
  /// `code` is the error for what is not an integer in the range.
  std::int64_t integer(std::string_view name, std::int64_t least, std::int64_t most,
                       ErrorCode code = ErrorCode::kInvalidRequest);  // required
  std::optional<std::int64_t> integer_or_none(std::string_view name, std::int64_t least, std::int64_t most,
                                              ErrorCode code = ErrorCode::kInvalidRequest);

  /// Calls `read` with the fields of the object, if it is given.
  void object(std::string_view name, const std::function<std::optional<Error>(JsonFields fields)>& read);
  /// Calls `read` with the fields of each object in a list of `least` to `most`.
  void each(std::string_view name, std::size_t least, std::size_t most,
            const std::function<std::optional<Error>(JsonFields fields)>& read);  // required
  bool boolean_or(std::string_view name, bool fallback);
  /// An object of strings; a value may be null if `nulls`, as in a merge patch.
  MetadataChange strings(std::string_view name, bool nulls);

  /// A time as RFC 3339 has it; nullopt if the field is null or absent.
  std::optional<Timestamp> time_or_none(std::string_view name);
  /// "expires_at" or "ttl_seconds", which begins at `now`; nullopt if neither is given.
  std::optional<Timestamp> expiry(Timestamp now);

  /// Networks; none if the field is null or absent.
  std::vector<Cidr> networks(std::string_view name, std::size_t most);
  /// Addresses, at least one; none if the field is null or absent.
  std::vector<IpAddress> addresses(std::string_view name, std::size_t most);
  /// Where a forward leads; nullopt if the field is null or absent. Without `needs_port`, a vsock's port may
  /// be left out, and is 0 then.
  std::optional<Target> target(std::string_view name, bool needs_port);
  /// Whether the field was given, even as null.
  bool given(std::string_view name) { return find(name, false) != nullptr || object_.contains(name); }

  /// Rejects a value that was read.
  void refuse(std::string_view name, std::string detail, ErrorCode code = ErrorCode::kInvalidRequest) {
    fail(code, name, std::move(detail));
  }
  /// The error, if there is one.
  std::optional<Error> finish();

 private:
  const boost::json::value* find(std::string_view name, bool required);
  void fail(ErrorCode code, std::string_view name, std::string detail);

  /// As the client has it: "target.port".
  std::string full(std::string_view name) const { return path_ + std::string(name); }

  std::string path_;
  boost::json::object object_;
  std::vector<std::string> known_;
  std::optional<Error> error_;
};

}  // namespace portway
