package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"time"

	"vmm/internal/output"
	"vmm/internal/visible"
	"vmm/machine"
	"vmm/vm"
)

// runResult is how a VM ended, for --result.
type runResult struct {
	Started bool   `json:"started"` // the command was
	Exited  bool   `json:"exited"`  // the command has
	Status  int    `json:"status"`  // of the command, or vmm's
	End     string `json:"end"`     // stopped, power off, reset, crash, debug exit, timeout or failed
	Detail  string `json:"detail,omitempty"`
}

// Further values of runResult.End: after --timeout, and when vmm could not go on.
const endTimeout, endFailed = "timeout", "failed"

// outputs are files that are written when the VM has ended; nil ones are not wanted. The
// process may open none any more then.
type outputs struct{ result, profile *output.File }

// openOutputs opens them, before the VM starts.
func (s *session) openOutputs(v *vm.VM) (o outputs, err error) {
	guest := v.GuestWritable()
	if s.Result != "" {
		if o.result, err = output.Open(s.Result, output.Report, guest); err != nil {
			return o, fmt.Errorf("--result: %w", err)
		}
	}
	if s.Profile != "" {
		if o.profile, err = output.Open(s.Profile, output.Private, guest); err != nil {
			return o, errors.Join(fmt.Errorf("--profile: %w", err), o.close())
		}
	}
	return o, nil
}

func (o *outputs) close() error { return errors.Join(o.result.Close(), o.profile.Close()) }

// save writes the result to the file of --result: how the VM ended, and with what error.
func (r *runResult) save(f *output.File, end string, err error) error {
	if f == nil {
		return nil
	}
	r.Status, r.Detail = statusOf(err)
	if r.End = end; r.Status == statusTimeout && !r.Exited {
		r.End = endTimeout
	}
	b, bad := json.Marshal(r)
	if bad == nil {
		bad = f.Replace(append(b, '\n'))
	}
	if bad != nil {
		return fmt.Errorf("--result: %w", bad)
	}
	return nil
}

// consoleLines is how much of the console is shown when a guest fails whose console
// is not seen.
const consoleLines = 40

// outcome is what the guest's end means for the exit status.
func (s *session) outcome(v *vm.VM, r vm.Result, status int) error {
	switch {
	case r.End == vm.EndCrash:
		if !s.Terminal && s.background == nil && v.Config().Console == (vm.Endpoint{}) {
			fmt.Fprintln(os.Stderr, visible.Text(v.LastLines(consoleLines)))
		}
		return &exitError{statusCrash, fmt.Errorf("the guest crashed: %s", r.Detail)}
	case r.End == vm.EndDebugExit:
		status = r.Status
	case r.End == vm.EndPowerOff && s.Config != nil && s.Config.HasImageInit():
		if why := v.InitErrors(); why != nil {
			return &exitError{statusFailed, fmt.Errorf("the guest could not start the image's init: %s", strings.Join(why, "; "))}
		}
	case r.End != vm.EndStopped && s.Sandbox:
		if why := v.InitErrors(); why != nil {
			return &exitError{statusFailed, fmt.Errorf("the guest could not run the command: %s", strings.Join(why, "; "))}
		}
		return &exitError{statusFailed, errors.New("the guest shut down before the command had ended")}
	}
	if status == statusOK {
		return nil
	}
	return &exitError{status, nil}
}

func writeProfile(f *output.File, v *vm.VM) error {
	if f == nil {
		return nil
	}
	var b bytes.Buffer
	err := v.WriteProfile(&b)
	if err == nil {
		err = f.Replace(b.Bytes())
	}
	if err != nil {
		return fmt.Errorf("--profile: %w", err)
	}
	return nil
}

// report prints what -v asks for.
func report(w io.Writer, v *vm.VM, setup, ran time.Duration) {
	mode := "hardware"
	switch {
	case v.Engine() == machine.SoftwareEngine:
		mode = "software"
	case v.Interpreted():
		mode = "interpreted"
	}
	fmt.Fprintf(w, "\nvmm: set up in %v, ran for %v, guest kernel mode: %s\n",
		setup.Round(time.Microsecond), ran.Round(time.Millisecond), mode)
	exits := v.Exits()
	names := make([]string, 0, len(exits))
	for n := range exits {
		names = append(names, n)
	}
	sort.Slice(names, func(i, j int) bool { return exits[names[i]] > exits[names[j]] })
	for _, n := range names {
		fmt.Fprintf(w, "vmm: %10d exits: %s\n", exits[n], n)
	}
	for i, n := range v.NICs() {
		fmt.Fprintf(w, "vmm: eth%d: received %d packets, %d bytes, dropped %d; sent %d packets, %d bytes, dropped %d\n",
			i, n.Received.Packets, n.Received.Bytes, n.Received.Dropped, n.Sent.Packets, n.Sent.Bytes, n.Sent.Dropped)
	}
}
