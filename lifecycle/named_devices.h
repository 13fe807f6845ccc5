// The interfaces that sessions name as what leads to their guests (Instance::device), and the sessions that
// name each. The node's operator owns these interfaces: one that is created again under the same name serves
// the same guests. Belongs to one thread.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace portway {

class NamedDevices {
 public:
  void add(const std::string& name, const std::string& instance_id, int index) {
    Device& device = devices_.try_emplace(name, Device{.index = index}).first->second;
    device.instances.insert(instance_id);
    if (device.index != 0) names_[device.index] = name;
  }

  void remove(const std::string& name, const std::string& instance_id) {
    const auto found = devices_.find(name);
    if (found == devices_.end()) return;
    found->second.instances.erase(instance_id);
    if (!found->second.instances.empty()) return;
    forget_index(found->first, found->second);
    devices_.erase(found);
  }

  bool empty() const { return devices_.empty(); }

  /// Something about the interface with this index, now called `name`, has changed. `index_of(name)` is the
  /// index of the interface that has a name now, 0 if there is none. Returns the sessions whose device is
  /// another one since the last call.
  template <class IndexOf>
  std::vector<std::string> on_link(int index, const std::string& name, IndexOf index_of) {
    std::set<std::string> names{name};
    if (const auto had = names_.find(index); had != names_.end()) names.insert(had->second);
    std::vector<std::string> changed;
    for (const std::string& each : names) {
      const auto found = devices_.find(each);
      if (found == devices_.end()) continue;
      Device& device = found->second;
      const int now = index_of(each);
      if (now == device.index) continue;
      forget_index(each, device);
      device.index = now;
      if (now != 0) names_[now] = each;
      changed.insert(changed.end(), device.instances.begin(), device.instances.end());
    }
    return changed;
  }

 private:
  struct Device {
    int index = 0;  // 0: it does not exist
    std::set<std::string> instances = {};
  };

  void forget_index(const std::string& name, const Device& device) {
    const auto found = names_.find(device.index);
    if (found != names_.end() && found->second == name) names_.erase(found);
  }

  std::map<std::string, Device, std::less<>> devices_;  // by name
  std::unordered_map<int, std::string> names_;          // by index
};

}  // namespace portway
