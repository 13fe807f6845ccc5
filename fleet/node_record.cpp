#include "fleet/node_record.h"

#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <limits>

namespace portway {
namespace {

/// Reads the members of an object; what is missing or of another type makes it false for good.
class RecordReader {
 public:
  explicit RecordReader(const boost::json::object& object) : object_(object) {}

  void read(std::string_view name, std::string& out) {
    const auto* value = find(name);
    if (value == nullptr || !value->is_string()) return fail();
    out = std::string(value->get_string());
  }
  void read(std::string_view name, bool& out) {
    const auto* value = find(name);
    if (value == nullptr || !value->is_bool()) return fail();
    out = value->get_bool();
  }
  void read(std::string_view name, Timestamp& out) {
    std::string text;
    read(name, text);
    const auto time = parse_rfc3339(text);
    if (!time) return fail();
    out = *time;
  }
  template <class Number>
  void read_number(std::string_view name, Number& out) {
    const auto* value = find(name);
    if (value == nullptr) return fail();
    boost::system::error_code error;
    const auto number = value->to_number<std::uint64_t>(error);
    if (error || number > std::numeric_limits<Number>::max()) return fail();
    out = static_cast<Number>(number);
  }
  const boost::json::object& object_in(std::string_view name) {
    static const boost::json::object none;
    const auto* value = find(name);
    if (value != nullptr && value->is_object()) return value->get_object();
    fail();
    return none;
  }

  void fail() { good_ = false; }
  bool good() const { return good_; }

 private:
  const boost::json::value* find(std::string_view name) const { return object_.if_contains(name); }

  const boost::json::object& object_;
  bool good_ = true;
};

}  // namespace

std::string to_json(const RegisteredNode& node) {
  const NodeRecord& record = node.record;
  return boost::json::serialize(boost::json::object{
      {"address", record.address},
      {"hostname", record.hostname},
      {"version", record.version},
      {"identity", node.identity},
      {"started_at", to_rfc3339(record.started_at)},
      {"draining", record.draining},
      {"capacity",
       {{"connections", record.capacity.connections}, {"host_ports", record.capacity.host_ports}}},
      {"load",
       {{"instances", record.load.instances},
        {"port_forwards", record.load.forwards},
        {"connections", record.load.connections}}}});
}

std::optional<RegisteredNode> parse_registered_node(std::string_view json) {
  boost::system::error_code error;
  const auto value = boost::json::parse(json, error);
  if (error || !value.is_object()) return std::nullopt;
  RegisteredNode node;
  NodeRecord& record = node.record;
  RecordReader reader(value.get_object());
  reader.read("address", record.address);
  reader.read("hostname", record.hostname);
  reader.read("version", record.version);
  reader.read("identity", node.identity);
  reader.read("started_at", record.started_at);
  reader.read("draining", record.draining);
  RecordReader capacity(reader.object_in("capacity"));
  capacity.read_number("connections", record.capacity.connections);
  capacity.read_number("host_ports", record.capacity.host_ports);
  RecordReader load(reader.object_in("load"));
  load.read_number("instances", record.load.instances);
  load.read_number("port_forwards", record.load.forwards);
  load.read_number("connections", record.load.connections);
  if (!reader.good() || !capacity.good() || !load.good()) return std::nullopt;
  return node;
}

}  // namespace portway
