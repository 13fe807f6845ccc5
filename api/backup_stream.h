// POST /v1/node/backup: a copy of the store as a body, a piece at a time.
//
// Belongs to the control thread, which does not wait for the disk: StoreBackup reads on a thread of its own.
#pragma once

#include <boost/asio/io_context.hpp>
#include <memory>

#include "api/http/message.h"
#include "base/error.h"
#include "control/store.h"

namespace portway {

/// It ends too early if the disk cannot read the copy, which is logged: Response::stream_bytes shows it.
Result<std::shared_ptr<BodyStream>> stream_backup(boost::asio::io_context& context,
                                                  std::shared_ptr<StoreBackup> backup);

}  // namespace portway
