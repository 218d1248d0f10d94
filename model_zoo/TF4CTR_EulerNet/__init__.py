from model_zoo.TF4CTR_EulerNet.TF4CTR_EulerNet import TF4CTR_EulerNet

__all__ = ["TF4CTR_EulerNet"]
