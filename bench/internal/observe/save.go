// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// Save writes every number of a report to a file, as JSON.
func Save(path string, report any) error {
	text, err := json.MarshalIndent(report, "", "\t")
	if err != nil {
		return fmt.Errorf("save: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("save: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("save: %w", err)
	}
	return nil
}
